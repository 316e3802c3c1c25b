"""What a study's report may say, claim by claim, and what is true of it."""

import re
from collections.abc import Iterator
from typing import Any

from claims import DEFINITIONS, SCALES, Claim, cell_fault
from study_facts import StudyFacts, interval

WORDS = dict(enumerate(("one", "two", "three", "four", "five", "six", "seven", "eight"), start=1))

FAMILY = (
    "The last of {count:s} models for {over_last} times its price from scratch, {all_of_them:s} for {family_cost} of"
)
FAMILY += " theirs"
WORST, WORST_ENDS = "η of the step that saves least, {worst:s}: ", "; {worst_ends:s}; at most {worst_ceiling}"
LEFT_OUT = "where a seed lacks a model by that, means leave it out."
RATES = "peak learning rates tried on {rung:s} ({rates:s}) the study uses {own_rate}, "
CLAIMS = [
    Claim(FAMILY, lambda f: not f["bound"]),
    Claim(FAMILY.replace("for {", "for at most {"), lambda f: f["bound"]),
    Claim("Growing saves {least_saving} of a model's training, on the steps measured so far"),
    Claim("Growing saves {least_saving} to {most_saving} of a model's training, on the steps measured so far"),
    Claim("{finished} of {runs} runs are finished; what is said here may still change."),
    *(
        Claim(f"{{failed}} {tasks} failed, see study.json; {LEFT_OUT}", when)
        for tasks, when in (("task", lambda f: f["failed"] == 1), ("tasks", lambda f: f["failed"] > 1))
    ),
    Claim("{missed:s}: not every seed matched its baseline within the budgets tried"),
    Claim(
        "Recipe “{recipe:s}” on {chain:s}: each model is grown from the one before it, which trained for"
        " {parent_fraction} of its budget (the first for all of it), and is compared with its baseline, the same model"
        " trained from scratch on its whole budget."
    ),
    Claim(
        "Intervals are {level} by Student's t over {seed_count:s} seeds; a child and its baseline share seed, order of"
        " the data and validation documents."
    ),
    Claim("One seed: nothing here tells a difference from chance.", lambda f: f["seeds"] == 1),
    Claim("{bounds:s} matched at the smallest budget tried already: saving and η are lower bounds there."),
    Claim("As trained to be parents, these stayed above their baselines in bits per byte: {short:s}."),
    Claim(
        "On the mean over seeds, every model between was, as trained, at least as good as its baseline.",
        lambda f: not f["short"],
    ),
    *(
        Claim(
            f"{title} {{comparisons}} comparisons of several seeds: it helps in {{helps}}, harms in {{harms}}, and"
            " cannot be told from nothing in {neither}."
        )
        for title in ("Φ against none at equal FLOPs,", "At equal tokens, what its estimates cost left out,")
    ),
    *(
        Claim(
            f"Of the {kind} "
            + RATES
            + verdict
            + ("; it is the {end:s} that was tried, and one beyond may be better." if at_end else "."),
            lambda f, when=when, at_end=at_end: when(f) and (f["end"] is not None) == at_end,
        )
        for kind in ("baseline's", "child's")
        for verdict, when in (
            ("which is the best", lambda f: f["gain"] <= 0),
            ("and {best_rate} is better by {gain} bits per byte", lambda f: f["gain"] > 0),
        )
        for at_end in (False, True)
    ),
    Claim("No model read a block that it, or its ancestors, had read before.", lambda f: f["repeated"] == 0),
    Claim(
        "{repeated} of {models} models read past the corpus's end and began it again; where, study.json says"
        " (repeats_from_token)."
    ),
    Claim("The study itself spent {spent} times the largest model's budget, {duration:s} of computing."),
    Claim(
        "Bars are {level} intervals by Student's t, ticks single seeds, a triangle a lower bound: matched at the"
        " smallest budget tried."
    ),
    Claim("Bars are {level} intervals by Student's t over the seeds."),
    Claim("Bits per byte less those of the same recipe without Φ, at each share of the budget; below {zero} Φ helps."),
    Claim(
        "The last column is bits per byte of the longest child less its baseline's; below {zero} the child is better."
    ),
    *DEFINITIONS,
    Claim("{unit_name:s}: 1 {unit_name:s} is {unit_size:s} floating-point operations."),
    # Tiles: title, value and note.
    *(
        Claim(template, (lambda f: f["bound"]) if "≤" in template else lambda f: not f["bound"])
        for template in (
            "last-model cost: {over_last} ×; {over_ends:s}",
            "last-model cost: ≤ {over_last} ×; {over_ends:s}",
            "family cost: {family_cost}; {inherited@unit} of {all_cold} from scratch",
            "family cost: ≤ {family_cost}; {inherited@unit} of {all_cold} from scratch",
        )
    ),
    *(
        Claim(title + bound + "{worst_eta}" + WORST_ENDS, when)
        for title in (WORST, "η, {worst:s}: ")
        for bound, when in (("", lambda f: not f["worst_bound"]), ("≥ ", lambda f: f["worst_bound"]))
    ),
    Claim("Φ at its best, {best_phi:s}: {best_difference}; bits per byte; {best_ends:s}"),
]


def ends(low: float | None, high: float | None, form: str = ".2f") -> str:
    if low is None and high is None:
        return "one seed, no interval"
    written = [None if end is None else f"{end:{form}}".replace("-", "−") for end in (low, high)]
    if written[1] is None:
        return f"{written[0]} or more"
    return f"{written[1]} or less" if written[0] is None else f"{written[0]} to {written[1]}"


def all_facts(study: dict[str, Any], facts: StudyFacts, text: str) -> Iterator[dict[str, Any]]:
    """Sets of facts that differ in what a comparison or a sweep is about."""
    recipe = study["headline"]["recipe"]
    measured = [name for name in facts.names[1:] if (recipe, name, facts.seeds[0]) in facts.children]
    steps = [facts.step(recipe, name) for name in measured]
    family = facts.family(recipe) if len(measured) == len(facts.names) - 1 else {"bound": False}
    savings = [step["saving"] for step in steps if step["saving"] is not None]
    known = [step for step in steps if step["eta"] is not None]
    worst = min(known, key=lambda step: step["eta"], default=None)
    groups = [*facts.cold.values(), *facts.children.values()]
    models = [point for group in groups for point in group]
    unit = re.search(r"\*\*([kMGTP]?)FLOP\*\*: 1 \w+ is (\S+) ", text)
    assert unit is not None
    short = [step for step in steps[:-1] if step["as_trained"] > 0]
    common = family | {
        "count": WORDS[len(facts.names)],
        "all_of_them": "both" if len(facts.names) == 2 else f"all {WORDS[len(facts.names)]}",
        "recipe": recipe,
        "chain": " → ".join(facts.names),
        "parent_fraction": facts.recipes[recipe]["parent_fraction"],
        "level": 0.95,
        "zero": 0.0,
        "seeds": len(facts.seeds),
        "seed_count": WORDS[len(facts.seeds)],
        "bounds": ", ".join(step["child"] for step in steps if step["bound"]) or None,
        "missed": ", ".join(step["child"] for step in steps if step["eta"] is None) or None,
        "short": ", ".join(f"{step['child']} by {step['as_trained']:.2g}" for step in short) or None,
        "over_ends": ends(family.get("over_low"), family.get("over_high")),
        "unit": SCALES[unit[1]],
        "unit_name": f"{unit[1]}FLOP",
        "unit_size": unit[2],
        "models": len(models),
        "finished": study["finished"],
        "runs": study["runs"],
        "failed": len(study["failed"]),
        "least_saving": min(savings, default=None),
        "most_saving": max(savings, default=None),
        "repeated": sum(point["repeats_from_token"] is not None for point in models),
        "spent": study["costs"]["flops"] / facts.baseline(facts.names[-1], facts.seeds[0])["flops"],
        "duration": duration(study["costs"]["seconds"]),
    }
    if worst:
        common |= {"worst": worst["child"], "worst_eta": worst["eta"], "worst_bound": worst["bound"]}
        common |= {"worst_ceiling": worst["ceiling"]}
        common |= {"worst_ends": ends(worst["eta_low"], worst["eta_high"])}
    yield from ({**common, **phi} for phi in phi_facts(facts))
    yield from ({**common, **rates} for rates in rate_facts(study, facts))


def duration(seconds: float) -> str:
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    return f"{round(seconds / 60) // 60} h {round(seconds / 60) % 60} min"


def phi_facts(facts: StudyFacts) -> Iterator[dict[str, Any]]:
    compared = facts.phi()
    if not compared:
        yield {}
        return
    best, (values, _) = min(compared.items(), key=lambda item: sum(item[1][0]) / len(item[1][0]))
    low, high = interval(values)
    signs = [f"{end:+.4f}".replace("-", "−") for end in (low, high) if end is not None]
    about_best = {"best_phi": best[0], "best_difference": sum(values) / len(values)}
    about_best |= {"best_ends": " to ".join(signs) or "one seed, no interval"}
    for kind in (0, 1):
        intervals = [interval(pair[kind]) for pair in compared.values() if len(pair[kind]) > 1]
        helps, harms = sum(high < 0 for _, high in intervals), sum(low > 0 for low, _ in intervals)
        counts = {"comparisons": len(intervals), "helps": helps, "harms": harms}
        yield about_best | counts | {"neither": len(intervals) - helps - harms}


def rate_facts(study: dict[str, Any], facts: StudyFacts) -> Iterator[dict[str, Any]]:
    recipe, seed = study["headline"]["recipe"], study["config"]["seeds"][0]
    for kind in ("cold", "child"):
        rows = [row for row in study["learning_rates"] if row["kind"] == kind]
        if not rows:
            continue
        rung, fraction = rows[0]["rung"], rows[0]["point"]["fraction"]
        points = facts.cold[rung, seed] if kind == "cold" else facts.children[recipe, rung, seed]
        own = next(point for point in points if point["fraction"] == fraction)
        tried = {row["learning_rate"]: row["point"]["bits_per_byte"] for row in rows}
        tried |= {own["learning_rate"]: own["bits_per_byte"]}
        best = min(tried, key=tried.__getitem__)
        rates = ", ".join(f"{rate:g}" for rate in sorted(tried))
        yield {"rung": rung, "rates": rates, "own_rate": own["learning_rate"], "best_rate": best} | {
            "gain": own["bits_per_byte"] - tried[best],
            "end": {min(tried): "lowest", max(tried): "highest"}.get(best) if len(tried) > 1 else None,
        }


def table_faults(header: list[str], rows: list[list[str]], study: dict[str, Any], facts: StudyFacts) -> Iterator[str]:
    """Compare a table cell by cell; one that is not known fails."""
    cost_cells = ["last-model cost", "95 %"]
    if header == ["child", *cost_cells, "η", "95 %", "at most", "saving", "seeds"]:
        for child, *cost, eta, both, ceiling, saving, matched in rows:
            step = facts.step(study["headline"]["recipe"], child)
            bound = step["bound"] and step["eta"] is not None
            yield from filter(
                None,
                (
                    cell_fault(saving, step["saving"], bound=bound),
                    cell_fault(eta, step["eta"], bound=bound),
                    *wrong_ends(both, step),
                    cell_fault(ceiling, step["ceiling"]),
                    *wrong_cost(*cost, step),
                    "" if matched == f"{step['matched']}/{step['seeds']}" else f"{child}: {matched}",
                ),
            )
    elif header == ["recipe", "child", "seeds", "η", "95 %", *cost_cells, "longest child − baseline"]:
        for recipe, child, seeds, eta, both, *cost, gap in rows:
            step = facts.step(recipe, child)
            bound = step["bound"] and step["eta"] is not None
            faults_of_row = (cell_fault(seeds, step["seeds"]), cell_fault(eta, step["eta"], bound=bound))
            faults_of_row += (*wrong_ends(both, step), *wrong_cost(*cost, step), cell_fault(gap, step["gap"]))
            yield from filter(None, faults_of_row)
    elif header[:2] == ["recipe", "child"]:
        yield from phi_faults(header, rows, facts)
    elif header[:2] == ["rung", "parameters"]:
        budgets = [size["cold_tokens"] * size["flops_per_token"] for size in study["rungs"]]
        scale = SCALES[header[3].split()[0].removesuffix("FLOP")]
        for place, (row, size) in enumerate(zip(rows, study["rungs"], strict=True)):
            ratio = budgets[place - 1] / budgets[place] if place else None
            true = ((size["parameters"], 1.0), (size["cold_tokens"], 1.0), (budgets[place], scale), (ratio, 1.0))
            checked = (cell_fault(cell, *pair) for cell, pair in zip(row[1:], true, strict=True))
            yield from filter(None, checked)
    elif header == ["model", "peak rate", "bits per byte"]:
        for row, swept in zip(rows, study["learning_rates"], strict=True):
            assert row[0] == f"{swept['kind']} {swept['rung']}"
            true = (swept["learning_rate"], swept["point"]["bits_per_byte"])
            yield from filter(None, (cell_fault(cell, value) for cell, value in zip(row[1:], true, strict=True)))
    else:
        assert header == ["setting", "value"]


def wrong_ends(said: str, step: dict[str, Any]) -> list[str]:
    true = "–" if step["eta"] is None else ends(step["eta_low"], step["eta_high"])
    return [] if said == true else [f"{said} here, and {true} in truth"]


def wrong_cost(said: str, both: str, step: dict[str, Any]) -> list[str]:
    if step["cost"] is None:
        return [] if (said, both) == ("–", "–") else [f"{said}, {both} here, and not known in truth"]
    faults_of_cost = [cell_fault(said.removeprefix("≤ "), step["cost"])]
    if said.startswith("≤ ") != step["bound"] or both != ends(step["cost_low"], step["cost_high"]):
        faults_of_cost.append(f"{said}, {both} here, and {step} in truth")
    return faults_of_cost


def phi_faults(header: list[str], rows: list[list[str]], facts: StudyFacts) -> Iterator[str]:
    compared = facts.phi()
    for recipe, rung, *cells in rows:
        for title, cell in zip(header[2:], cells, strict=True):
            percent, _, tokens = title.partition(" %")
            values = compared.get((recipe, rung, round(int(percent) / 100, 2)), ([], []))[bool(tokens)]
            numbers = re.findall(r"[−+][\d.]+", cell)
            low, high = interval(values) if values else (None, None)
            true = [sum(values) / len(values)] if values else []
            true += [end for end in (low, high) if end is not None]
            wrong = len(numbers) != len(true)
            wrong = wrong or any(cell_fault(number, value) for number, value in zip(numbers, true, strict=True))
            if wrong:
                yield f"{recipe} on {rung}, {title}: {cell} here, and {true} in truth"
