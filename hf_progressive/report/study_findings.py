"""What a study found, in sentences: what inheritance saves, and how sure that is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_progressive.report.formatting import NOTHING, FlopUnit, duration, minus, percent, significant

Record = Mapping[str, Any]
"""An object of study.json."""

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True, kw_only=True)
class StudyFigure:
    """A number that stands large on the page."""

    title: str
    """What it is."""

    value: str
    """The number."""

    note: str
    """What belongs to it."""


@dataclass(frozen=True, kw_only=True)
class StudyFindings:
    """What a study found."""

    headline: str
    """The answer in one sentence."""

    explanation: str
    """What was compared."""

    figures: tuple[StudyFigure, ...]
    """The numbers."""

    certainty: tuple[str, ...]
    """How sure they are."""

    unfinished: str
    """What is still missing; empty where nothing is."""


def study_unit(study: Record) -> FlopUnit:
    """Return the unit of a study's FLOPs.

    Args:
        study: The record.

    Returns:
        The unit that fits its largest model.
    """
    return FlopUnit.for_values(rung["cold_flops"] for rung in study["rungs"])


def in_words(number: int) -> str:
    """Write a small count in words.

    Args:
        number: The count.

    Returns:
        The word; figures above ten.

    >>> in_words(4), in_words(12)
    ('four', '12')
    """
    return _NUMBERS[number] if number < len(_NUMBERS) else str(number)


def two_ends(low: float | None, high: float | None) -> str:
    """Write an interval.

    Args:
        low: Its lower end; None where it is open, both where there is no interval.
        high: Its upper end.

    Returns:
        Both ends, or that one seed has none.

    >>> two_ends(0.913, 1.2), two_ends(-0.2, 0.1), two_ends(None, None)
    ('0.91 to 1.20', '−0.20 to 0.10', 'one seed, no interval')
    >>> two_ends(0.9, None), two_ends(None, 1.1)
    ('0.90 or more', '1.10 or less')
    """
    if low is None and high is None:
        return "one seed, no interval"
    if low is None:
        return minus(f"{high:.2f} or less")
    return minus(f"{low:.2f} or more" if high is None else f"{low:.2f} to {high:.2f}")


def find_in_study(study: Record) -> StudyFindings:
    """Say what a study found.

    Args:
        study: The record.

    Returns:
        The findings.
    """
    headline = study["headline"]
    unfinished = ""
    if not study["complete"]:
        unfinished = f"{study['finished']} of {study['runs']} runs are finished; what is said here may still change."
    return StudyFindings(
        headline=_headline(study),
        explanation=_explanation(study),
        figures=tuple(_figures(headline, study_unit(study))),
        certainty=tuple(_certainty(study)),
        unfinished=unfinished,
    )


def _headline(study: Record) -> str:
    rungs, family = study["headline"]["rungs"], study["headline"]["family"]
    if not rungs:
        return "No step is finished with all of its budgets yet"
    if family["inherited"] is not None:
        count = in_words(len(study["rungs"]))
        ratio = family["over_last_alone"]
        bound = "at most " if family["at_most"] else ""
        return f"A family of {count} models for {bound}{ratio:.2f} times what its largest alone costs cold"
    missed = [rung["child"] for rung in rungs if rung["eta"] is None]
    if missed:
        return f"{', '.join(missed)}: not every seed matched its baseline within the budgets tried"
    savings = [rung["saving"] for rung in rungs]
    return f"Growing saves {_span(savings)} of a model's training, on the steps measured so far"


def _span(shares: Sequence[float]) -> str:
    low, high = percent(min(shares)), percent(max(shares))
    return low if low == high else f"{low.removesuffix(' %')} to {high}"


def _explanation(study: Record) -> str:
    headline = study["headline"]
    names = " → ".join(rung["name"] for rung in study["rungs"])
    fraction = headline["parent_fraction"]
    return (
        f"Recipe “{headline['recipe']}” on {names}: each model is grown from the one before it, which had trained for "
        f"{percent(fraction)} of its cold budget (the first for all of it), and is compared with the same model "
        f"trained from nothing on its whole budget."
    )


def _figures(headline: Record, unit: FlopUnit) -> list[StudyFigure]:
    family, rungs = headline["family"], headline["rungs"]
    figures = []
    if family["inherited"] is not None:
        ends = two_ends(family["over_last_alone_low"], family["over_last_alone_high"])
        saved = 1 - family["inherited"] / family["cold"]
        figures += [
            StudyFigure(
                title="family over last model alone",
                value=("≤ " if family["at_most"] else "") + f"{family['over_last_alone']:.2f} ×",
                note=ends,
            ),
            StudyFigure(
                title="saved on the family, against all cold",
                value=percent(saved),
                note=f"{unit.number(family['inherited'])} instead of {unit.text(family['cold'])}",
            ),
        ]
    known = [rung for rung in rungs if rung["eta"] is not None]
    if known:
        worst = min(known, key=lambda rung: float(rung["eta"]))
        figures.append(
            StudyFigure(
                title=f"η of the step that saves least, {worst['child']}",
                value=("≥ " if worst["at_least"] else "") + f"{worst['eta']:.2f}",
                note=two_ends(worst["eta_low"], worst["eta_high"]),
            )
        )
    best = _best_phi(headline["phi_effect"])
    if best is not None:
        figures.append(
            StudyFigure(
                title=f"Φ at its best, {best['recipe']}",
                value=signed(best["difference"]),
                note=f"bits per byte; {_phi_ends(best)}",
            )
        )
    return figures


def signed(value: float) -> str:
    """Write a difference in bits per byte.

    Args:
        value: The difference.

    Returns:
        Four decimals and a sign, which zero has too.

    >>> signed(0.00214), signed(-0.01), signed(-0.00001)
    ('+0.0021', '−0.0100', '+0.0000')
    """
    return minus(f"{value:+z.4f}")


def _phi_ends(point: Record) -> str:
    if point["low"] is None:
        return "one seed, no interval"
    return f"{signed(point['low'])} to {signed(point['high'])}"


def _phi_points(effect: Record) -> list[dict[str, Any]]:
    return [
        {**point, "recipe": recipe["recipe"], "rung": rung["rung"]}
        for recipe in effect["recipes"]
        for rung in recipe["rungs"]
        for point in rung["points"]
    ]


def _best_phi(effect: Record) -> dict[str, Any] | None:
    points = _phi_points(effect)
    return min(points, key=lambda point: float(point["difference"])) if points else None


def _certainty(study: Record) -> list[str]:
    headline = study["headline"]
    sentences = []
    rungs = headline["rungs"]
    seeds = min((rung["seeds"] for rung in rungs), default=0)
    if seeds > 1:
        sentences.append(
            f"Intervals are 95 % by Student's t over {in_words(seeds)} seeds, each with its own weights and order of "
            f"the data and the same validation documents; child and baseline share both."
        )
    elif rungs:
        sentences.append("One seed: nothing here tells a difference from chance.")
    bounds = [rung["child"] for rung in rungs if rung["at_least"]]
    if bounds:
        sentences.append(
            f"{', '.join(bounds)} matched at the smallest budget tried already: saving and η are lower bounds there."
        )
    short = [
        rung
        for rung in rungs[:-1]
        if rung["gap_as_trained"]["mean"] > 0 and rung["gap_as_trained"]["mean"] is not None
    ]
    if short:
        gaps = ", ".join(f"{rung['child']} by {significant(rung['gap_as_trained']['mean'], 2)}" for rung in short)
        sentences.append(f"As trained to be parents, these stayed above their baselines in bits per byte: {gaps}.")
    elif len(rungs) > 1:
        sentences.append(
            "On the mean over seeds, every model between was, as trained, at least as good as its baseline."
        )
    sentences += _phi_verdict(headline["phi_effect"])
    sentences += _rate_sentences(study)
    sentences += _data_sentences(study)
    if study["failed"]:
        sentences.append(f"{len(study['failed'])} tasks failed; they are listed in study.json.")
    costs = study["costs"]
    spent = costs["flops"] / study["rungs"][-1]["cold_flops"]
    sentences.append(
        f"The study itself spent {significant(spent)} times the largest model's cold budget, "
        f"{duration(costs['seconds'])} of computing."
    )
    return sentences


def _phi_verdict(effect: Record) -> list[str]:
    points = _phi_points(effect)
    if not points:
        return []
    tested = [point for point in points if point["low"] is not None]
    if tested:
        sentences = [f"Φ against none at equal FLOPs, {_verdicts(tested)}."]
        at_equal_tokens = [point["at_equal_tokens"] for point in tested if point.get("at_equal_tokens")]
        if at_equal_tokens:
            sentences.append(f"At equal tokens, what its estimates cost left out, {_verdicts(at_equal_tokens)}.")
        return sentences
    better = sum(point["difference"] < 0 for point in points)
    return [f"Φ against none at equal FLOPs, one seed: lower in {better} of {len(points)} comparisons, no interval."]


def _verdicts(points: list[dict[str, Any]]) -> str:
    helped = sum(point["high"] < 0 for point in points)
    hurt = sum(point["low"] > 0 for point in points)
    return (
        f"{len(points)} comparisons of several seeds: it helps in {helped}, harms in {hurt}, and cannot be told from "
        f"nothing in {len(points) - helped - hurt}"
    )


def _rate_sentences(study: Record) -> list[str]:
    # Whether a peak learning rate of the sweep beats the one that baselines, or children, were trained with.
    sentences = []
    for kind, name in (("cold", "baseline's"), ("child", "child's")):
        rows = [row for row in study["learning_rates"] if row["kind"] == kind and row["point"] is not None]
        rows = [row for row in rows if "failed" not in row["point"]]
        own = _own_point(study, kind, rows[0]) if rows else None
        if own is None:
            continue
        tried = {own["learning_rate"]: own} | {row["learning_rate"]: row["point"] for row in rows}
        best = min(tried, key=lambda rate: float(tried[rate]["bits_per_byte"]))
        gain = own["bits_per_byte"] - tried[best]["bits_per_byte"]
        verdict = (
            "which is the best" if gain <= 0 else f"and {best:g} is better by {significant(gain, 2)} bits per byte"
        )
        rates = ", ".join(f"{rate:g}" for rate in sorted(tried))
        sentences.append(
            f"Of the {name} peak learning rates tried on {rows[0]['rung']} ({rates}) the study uses "
            f"{own['learning_rate']:g}, {verdict}."
        )
    return sentences


def _own_point(study: Record, kind: str, row: Record) -> dict[str, Any] | None:
    # What the study's own rate gave at the budget, rung and seed of a swept run.
    recipe = next(recipe for recipe in study["recipes"] if recipe["name"] == study["headline"]["recipe"])
    groups = study["cold"] if kind == "cold" else recipe["points"]
    seed, fraction = study["config"]["seeds"][0], row["point"]["fraction"]
    points = [p for g in groups if g["rung"] == row["rung"] and g["seed"] == seed for p in g["points"]]
    return next((point for point in points if point["fraction"] == fraction and "failed" not in point), None)


def _data_sentences(study: Record) -> list[str]:
    groups = [*study["cold"], *(group for recipe in study["recipes"] for group in recipe["points"])]
    points = [point for group in groups for point in group["points"] if "failed" not in point]
    repeated = [point for point in points if point["repeats_from_token"] is not None]
    if not points:
        return []
    if not repeated:
        return ["No model read a block that it, or its ancestors, had read before."]
    return [
        f"{len(repeated)} of {len(points)} models read past the corpus's end and began it again; "
        f"where, study.json says (repeats_from_token)."
    ]


def value_or_nothing(value: float | None, digits: int = 2) -> str:
    """Write a number that may be missing.

    Args:
        value: The number, or None.
        digits: Decimals.

    Returns:
        The number, or a dash.

    >>> value_or_nothing(1.234), value_or_nothing(None)
    ('1.23', '–')
    """
    return NOTHING if value is None else minus(f"{value:.{digits}f}")
