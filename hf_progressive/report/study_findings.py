"""What a study found, in sentences: what inheritance saves, and how sure that is."""

from collections.abc import Sequence
from statistics import fmean

from hf_progressive.records.last_model import LastModelCost
from hf_progressive.records.study import FinishedRun, StudyModel, StudyRecord
from hf_progressive.records.study_outcome import Difference, PenaltyEffect, StepOutcome
from hf_progressive.report.findings import Findings, Tile
from hf_progressive.report.formatting import (
    FlopUnit,
    all_of,
    count,
    counted,
    duration,
    in_words,
    join_names,
    percent,
    signed,
    signed_ends,
    significant,
    span,
    two_ends,
)
from hf_progressive.report.rate_findings import rate_sentences


def study_unit(study: StudyRecord) -> FlopUnit:
    """Return the unit of a study's FLOPs, which fits its largest model."""
    return FlopUnit.for_values(rung.cold_flops for rung in study.rungs)


def find_in_study(study: StudyRecord) -> Findings:
    """Put a study's results, finished or not, into sentences."""
    study = study.without_outcomes() if study.chooses_rates else study
    unfinished = f"{study.finished} of {study.runs} runs are finished; what is said here may still change."
    return Findings(
        headline=_headline(study),
        explanation=_explanation(study),
        tiles=tuple(_tiles(study)),
        certainty=tuple(_certainty(study)),
        unfinished=None if study.complete else unfinished,
    )


def _headline(study: StudyRecord) -> str:
    rungs, family, cost = study.headline.rungs, study.headline.family, study.last_model_cost
    if study.chooses_rates:
        return "Peak learning rates are still being tried: no cost is known yet"
    if not rungs:
        return "No step is finished with all of its budgets yet"
    if cost is not None:
        price, stages = f"{'at most ' * cost.at_most}{cost.value:.2f} times its price from scratch", study.trunk
        if stages:
            how = f"by a trunk through {in_words(len(stages))} smaller"
            return f"The last model for {price} ({_spread(cost)}), {how}{_whole_family(study)}"
        shared = ""
        if family.inherited is not None:
            share = "at most " * family.at_most + percent(family.inherited / family.cold)
            shared = f", {all_of(len(study.rungs))} for {share} of theirs"
        return f"The last of {in_words(len(study.rungs))} models for {price}{shared}"
    missed = [rung.child for rung in rungs if rung.eta is None]
    if missed and study.trunk:
        return f"{', '.join(missed)}: no price from scratch can be read off the finished baselines of every seed"
    if missed:
        return f"{', '.join(missed)}: not every seed matched its baseline within the budgets tried"
    savings = span([rung.saving for rung in rungs if rung.saving is not None], percent)
    return f"Growing saves {savings} of a model's training, on the steps measured so far"


def _whole_family(study: StudyRecord) -> str:
    family = study.headline.family
    if family.over_last_alone is None:
        return ""
    ends = "" if family.seeds == 1 else f" ({two_ends(family.over_last_alone_low, family.over_last_alone_high)})"
    bound = "at most " * family.at_most
    return f"; {all_of(len(study.trunk) + 1)} for {bound}{family.over_last_alone:.2f} times it{ends}"


def _spread(cost: LastModelCost) -> str:
    return "one seed" if cost.seeds == 1 else f"{two_ends(cost.low, cost.high)}, {in_words(cost.seeds)} seeds"


def _explanation(study: StudyRecord) -> str:
    headline = study.headline
    if study.trunk:
        stages = ", ".join(f"{stage.name} until {percent(stage.until)}" for stage in study.trunk)
        measured = {step.child for step in study.headline_recipe.rungs} or {rung.name for rung in study.rungs}
        sized = join_names([_sized(rung) for rung in study.rungs if rung.name in measured])
        return (
            f"Recipe “{headline.recipe}” on {sized}: one run at a "
            f"constant rate grows from size to size ({stages} of the tokens), decays once at its end, and is compared "
            f"with the same model trained from scratch, at equal bits per byte.{_of_members(study)}"
        )
    names = " → ".join(rung.name for rung in study.rungs)
    return (
        f"Recipe “{headline.recipe}” on {names}: each model is grown from the one before it, which trained for "
        f"{percent(headline.parent_fraction)} of its budget (the first for all of it), and is compared with its "
        f"baseline, the same model trained from scratch on its whole budget."
    )


def _of_members(study: StudyRecord) -> str:
    # How the smaller models of a trunk's family are finished, and what each is worth in the mean over the seeds.
    worths: dict[str, list[float]] = {}
    for member in study.headline_recipe.members:
        if member.kind == "decay" and member.worth is not None and member.end in (None, study.rungs[-1].name):
            worths.setdefault(member.stage, []).append(member.worth)
    if not worths or study.headline.family.inherited is None:
        return ""
    said = join_names([f"{name} {percent(fmean(known))}" for name, known in worths.items()])
    return (
        " The smaller models are members that branch off the run, each with a decay of its own. They are worth, in "
        f"budgets from scratch of their own size, {said}."
    )


def _sized(rung: StudyModel) -> str:
    per_parameter = f"{rung.cold_tokens / rung.scaling_parameters:.3g}"
    tokens = "token" if per_parameter == "1" else "tokens"
    of_all = per_parameter == f"{rung.cold_tokens / rung.parameters:.3g}"
    which = "" if of_all else f" of the {count(rung.scaling_parameters)} that scaling counts"
    return f"{rung.name} ({count(rung.parameters)} parameters, {per_parameter} {tokens} for each{which})"


def _tiles(study: StudyRecord) -> list[Tile]:
    headline, unit, cost = study.headline, study_unit(study), study.last_model_cost
    family = headline.family
    tiles = []
    if cost is not None:
        value = "≤ " * cost.at_most + f"{cost.value:.2f} ×"
        beyond = f"; {cost.extrapolated} of {cost.seeds} seeds extrapolated" * (cost.extrapolated > 0)
        tiles.append(Tile(title="last-model cost", value=value, note=two_ends(cost.low, cost.high) + beyond))
    if family.inherited is not None:
        tiles.append(
            Tile(
                title="family cost",
                value="≤ " * family.at_most + percent(family.inherited / family.cold),
                note=f"{unit.number(family.inherited)} of {unit.text(family.cold)} from scratch",
            )
        )
    known = [(rung.eta, rung) for rung in study.headline_recipe.rungs if rung.eta is not None]
    if known:
        _, worst = min(known, key=lambda pair: pair[0])
        ceiling = "" if worst.eta_ceiling is None else f"; at most {worst.eta_ceiling:.2f}"
        tiles.append(
            Tile(
                title=f"η of the step that saves least, {worst.child}" if known[1:] else f"η, {worst.child}",
                value="≥ " * worst.at_least + f"{worst.eta:.2f}",
                note=two_ends(worst.eta_low, worst.eta_high) + ceiling,
            )
        )
    points = headline.phi_effect.points
    if points:
        recipe, best = min(points, key=lambda pair: pair[1].difference)
        note = f"bits per byte; {signed_ends(best.low, best.high)}"
        tiles.append(Tile(title=f"Φ at its best, {recipe}", value=signed(best.difference), note=note))
    return tiles


def _certainty(study: StudyRecord) -> list[str]:
    rungs = study.headline.rungs
    sentences = []
    seeds = min((rung.seeds for rung in rungs), default=0)
    if seeds > 1:
        sentences.append(
            f"Intervals are 95 % by Student's t over {in_words(seeds)} seeds; a child and its baseline share seed, "
            f"order of the data and validation documents."
        )
    elif rungs:
        sentences.append("One seed: nothing here tells a difference from chance.")
    bounds = [rung.child for rung in rungs if rung.at_least]
    if bounds:
        sentences.append(
            f"{', '.join(bounds)} matched at the smallest budget tried already: saving and η are lower bounds there."
        )
    sentences += _bits_per_byte(study) + _extrapolated(study) + _different_seeds(study) + _best_of(study)
    sentences += [] if study.trunk else _as_parents(rungs)  # a trunk's ends are nobody's parents
    sentences += _phi_verdict(study.headline.phi_effect)
    sentences += rate_sentences(study)
    sentences += _data_sentences(study)
    if study.failed:
        sentences.append(
            f"{counted(len(study.failed), 'task')} failed, see study.json; where a seed lacks a model by that, means "
            "leave it out."
        )
    costs = study.costs
    spent = significant(costs.flops / study.rungs[-1].cold_flops)
    sentences.append(
        f"The study itself spent {spent} times the largest model's budget, {duration(costs.seconds)} of computing."
    )
    return sentences


def _bits_per_byte(study: StudyRecord) -> list[str]:
    # At which bits per byte a trunk is compared, and whether the interval leaves the sign open.
    cost, last, sentences = study.last_model_cost, study.rungs[-1].name, []
    seeds = [seed.seed for seed in cost.by_seed] if cost else []
    ends = [max(e.finished, key=_length) for e in study.headline_recipe.points if e.rung == last and e.seed in seeds]
    whole = [run for e in study.cold if e.rung == last and e.seed in seeds for run in e.finished if run.fraction == 1]
    if study.trunk and ends and whole:
        grown, baseline = (fmean(run.bits_per_byte for run in runs) for runs in (ends, whole))
        sentences.append(
            f"The trunk ends at {grown:.4f} bits per byte, its baseline's whole budget at {baseline:.4f}"
            f"{', means over the seeds' * (len(seeds) > 1)}; a seed's cost is at what its own trunk has."
        )
    if cost is not None and cost.low is not None and cost.high is not None and cost.low <= 1 <= cost.high:
        sentences.append("The interval of the last-model cost holds 1: that growing is cheaper is not shown.")
    return sentences


def _length(run: FinishedRun) -> float:
    return run.fraction


def _extrapolated(study: StudyRecord) -> list[str]:
    cost = study.last_model_cost
    if cost is None or not cost.extrapolated:
        return []
    beyond = [seed.c_scratch / study.rungs[-1].cold_flops for seed in cost.by_seed if seed.extrapolated]
    how_far = f", to {span(beyond, lambda share: f'{share:.2f}')} times the whole budget" if beyond else ""
    return [
        f"In {cost.extrapolated} of {cost.seeds} seeds the last model is better, or worse, than every finished "
        f"baseline: the budget from scratch that is worth it is extrapolated there{how_far}. "
        "An asterisk in the tables marks such costs."
    ]


def _different_seeds(study: StudyRecord) -> list[str]:
    # Of recipes that not all have the same seeds: the headline's cost on those that all have, and on its others.
    cost, of_recipes = study.last_model_cost, seeds_of_recipes(study, study.rungs[-1].name)
    if cost is None or len({*of_recipes.values()}) < 2:
        return []
    shared = set.intersection(*map(set, of_recipes.values()))
    parts = []
    for which, are_shared in (("which all recipes have", True), ("which others lack", False)):
        some = [seed for seed in cost.by_seed if (seed.seed in shared) == are_shared]
        if some:
            names = join_names([str(seed.seed) for seed in some])
            seeds = "seed" if len(some) == 1 else "seeds"
            parts.append(f"{fmean(seed.value for seed in some):.2f} on {seeds} {names}, {which}")
    return [f"Not all recipes have the same seeds. The last model costs {', and '.join(parts)}."] if parts else []


def _best_of(study: StudyRecord) -> list[str]:
    # A headline that is the best of several may have been chosen for that. Seeds count that all of them have.
    steps = ((recipe.name, step) for recipe in study.recipes for step in recipe.rungs)
    costs = {name: step.known_cost for name, step in steps if step.child == study.rungs[-1].name}
    known = {name: cost for name, cost in costs.items() if cost is not None}
    shared = set.intersection(*({seed.seed for seed in cost.by_seed} for cost in known.values())) if known else set()
    means = {
        name: fmean(seed.value for seed in cost.by_seed if seed.seed in shared) if shared else cost.value
        for name, cost in known.items()
    }
    name = study.headline.recipe
    others = [mean for recipe, mean in means.items() if recipe != name]
    if not others or name not in means or means[name] >= min(others):
        return []
    return [
        f"Of {in_words(len(known))} recipes “{name}” costs least; if it is the headline for that, chance flatters it."
    ]


def seeds_of_recipes(study: StudyRecord, rung: str) -> dict[str, tuple[int, ...]]:
    """Return the seeds over which each recipe's means on a rung are, by the names of the recipes that have some."""
    steps = [(recipe.name, step) for recipe in study.recipes for step in recipe.rungs if step.child == rung]
    return {name: tuple(seed.seed for seed in step.by_seed) for name, step in steps}


def _as_parents(rungs: Sequence[StepOutcome]) -> list[str]:
    between = [(rung.child, rung.gap_as_trained.mean) for rung in rungs[:-1]]
    short = ", ".join(f"{name} by {significant(gap, 2)}" for name, gap in between if gap > 0)
    if short:
        return [f"As trained to be parents, these stayed above their baselines in bits per byte: {short}."]
    if between:
        return ["On the mean over seeds, every model between was, as trained, at least as good as its baseline."]
    return []


def _phi_verdict(effect: PenaltyEffect) -> list[str]:
    points = [point for _, point in effect.points]
    if not points:
        return []
    tested = [point for point in points if point.ends is not None]
    if tested:
        sentences = [f"Φ against none at equal FLOPs, {_verdicts(tested)}."]
        at_equal_tokens = [point.at_equal_tokens for point in tested if point.at_equal_tokens]
        if at_equal_tokens:
            sentences.append(f"At equal tokens, what its estimates cost left out, {_verdicts(at_equal_tokens)}.")
        return sentences
    better = sum(point.difference < 0 for point in points)
    return [f"Φ against none at equal FLOPs, one seed: lower in {better} of {len(points)} comparisons, no interval."]


def _verdicts(points: Sequence[Difference]) -> str:
    ends = [point.ends for point in points if point.ends is not None]
    helped, hurt = sum(high < 0 for _, high in ends), sum(low > 0 for low, _ in ends)
    return (
        f"{len(points)} comparisons of several seeds: it helps in {helped}, harms in {hurt}, and cannot be told from "
        f"nothing in {len(points) - helped - hurt}"
    )


def _data_sentences(study: StudyRecord) -> list[str]:
    groups = [*study.cold, *(group for recipe in study.recipes for group in recipe.points)]
    points = [point for group in groups for point in group.finished]
    repeated = [point for point in points if point.repeats_from_token is not None]
    if not points:
        return []
    if not repeated:
        return ["No model read a block that it, or its ancestors, had read before."]
    return [
        f"{len(repeated)} of {len(points)} models read past the corpus's end and began it again; "
        f"where, study.json says (repeats_from_token)."
    ]
