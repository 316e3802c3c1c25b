"""What a study's peak learning rates say of its result: which were tried on which side, and how they were chosen."""

from statistics import fmean

from hf_progressive.records.study import FinishedRun, StudyRecord, SweptRate
from hf_progressive.records.tried_rates import TriedSide, end_of_range, tried_sides
from hf_progressive.report.formatting import in_words, join_names, significant


def rate_sentences(study: StudyRecord) -> list[str]:
    """Say which rates were tried, on which side, and what that means for the result."""
    sides = tried_sides(study)
    if not sides:
        return _swept(study)
    if study.chooses_rates:
        done = sum(side.done for side in sides)
        return [
            f"{done} of {done + sum(side.pending for side in sides)} training runs that try peak learning rates are "
            "finished; costs follow when each side has its best."
        ]
    beside = [sentence for side in sides for sentence in _beside(study, side)]
    return [*map(_side, sides), *beside, *_not_tried(study, sides), _chosen(study), *_at_an_end(sides)]


def side_name(recipe: str | None) -> str:
    """Return what people call a side."""
    return "the baseline" if recipe is None else f"recipe “{recipe}”"


def _side(side: TriedSide) -> str:
    rates = ", ".join(f"{rate:g}" for rate in sorted((*side.finished, *side.failed)))
    best = "training failed at each" if side.best is None else f"{side.best:g} is the best, and the study uses it"
    failed = ", ".join(f"{rate:g}" for rate in sorted(side.failed))
    note = f"; training failed at {failed}" if side.failed and side.finished else ""
    return f"Of the peak learning rates tried for {side_name(side.recipe)} on {side.rung} ({rates}) {best}{note}."


def _beside(study: StudyRecord, side: TriedSide) -> list[str]:
    # Rates that were tried and not chosen from: a better one says that the cost is measured against too weak a side.
    found = []
    for rate, above in sorted(side.beside.items()):
        how = (
            f"{significant(abs(above), 2)} bits per byte {'worse' if above > 0 else 'better'}" if above else "the same"
        )
        found.append(f"{rate:g} is {how}")
    found += [f"at {rate:g} training failed" for rate in sorted(side.beside_failed)]
    if not found:
        return []
    name, seed = side_name(side.recipe), study.config.seeds[0]
    return [f"Tried for {name} beside them, on seed {seed} alone and not chosen from: {'; '.join(found)}."]


def _not_tried(study: StudyRecord, sides: list[TriedSide]) -> list[str]:
    tried = [side.recipe for side in sides]
    others = [f"“{recipe.name}”" for recipe in study.recipes if recipe.name not in tried]
    if not others:
        return []
    source = next((f"recipe “{name}”" for name in tried if name is not None), "the baseline")
    takes = "takes" if len(others) == 1 else "take"
    return [f"No rate was tried for {join_names(others)}, which {takes} that of {source} and may have a better one."]


def _chosen(study: StudyRecord) -> str:
    cost, chosen = study.last_model_cost, study.seeds_of_rates
    others = [seed.value for seed in cost.by_seed if seed.seed not in chosen] if cost else []
    one = len(chosen) == 1
    without = ""
    if others:
        seeds = "seed" if len(others) == 1 else "seeds"
        it = "it" if one else "them"
        without = f"; without {it} the last model costs {fmean(others):.2f} ({in_words(len(others))} {seeds})"
    on = "seed" if one else "seeds"
    if not one or chosen[0] != study.config.seeds[0]:
        on = f"{on} {join_names([str(seed) for seed in chosen])}"
    else:
        on = f"the first {on}"
    how = f"Peak learning rates were chosen on {on}, by the validation documents that everything is measured on"
    if cost and not any(seed.seed in chosen for seed in cost.by_seed):
        return f"{how}; recipe “{study.headline.recipe}” is measured on others."
    counts = "that seed counts" if one else "by their means, and these count"
    return f"{how}; {counts} in the means and intervals like the others{without}."


def _at_an_end(sides: list[TriedSide]) -> list[str]:
    ends = "; ".join(f"{side_name(side.recipe)} ({side.best:g}, the {side.end})" for side in sides if side.end)
    return [f"The best rate is at an end of those tried, and one beyond may be better: {ends}."] if ends else []


def _swept(study: StudyRecord) -> list[str]:
    # Whether a peak learning rate of the sweep beats the one that baselines, or children, were trained with.
    sentences = []
    for kind, name in (("cold", "baseline's"), ("child", "child's")):
        rows = [
            row
            for row in study.learning_rates
            if row.kind == kind and row.recipe in (None, study.headline.recipe) and isinstance(row.point, FinishedRun)
        ]
        own = _own_point(study, rows[0]) if rows else None
        if own is None:
            continue
        tried = {own.learning_rate: own.bits_per_byte}
        tried |= {row.learning_rate: row.point.bits_per_byte for row in rows if isinstance(row.point, FinishedRun)}
        best = min(tried, key=lambda rate: tried[rate])
        gain = own.bits_per_byte - tried[best]
        verdict = (
            "which is the best" if gain <= 0 else f"and {best:g} is better by {significant(gain, 2)} bits per byte"
        )
        if (end := end_of_range(best, [*tried])) is not None:
            verdict += f"; it is the {end} that was tried, and one beyond may be better"
        rates = ", ".join(f"{rate:g}" for rate in sorted(tried))
        sentences.append(
            f"Of the {name} peak learning rates tried on {rows[0].rung} ({rates}) the study uses "
            f"{own.learning_rate:g}, {verdict}."
        )
    return sentences


def _own_point(study: StudyRecord, row: SweptRate) -> FinishedRun | None:
    # What the study's own rate gave at the budget, rung and seed of a swept run.
    groups = study.cold if row.kind == "cold" else study.headline_recipe.points
    points = [p for g in groups if g.rung == row.rung and g.seed == study.config.seeds[0] for p in g.finished]
    return next((point for point in points if row.point and point.fraction == row.point.fraction), None)
