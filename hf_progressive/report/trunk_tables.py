"""What a study measured of trunks, as tables: their cost at every length, and what their stages are worth."""

from collections.abc import Sequence
from statistics import fmean

from hf_progressive.records.interval import mean_interval
from hf_progressive.records.last_model import SeedCost
from hf_progressive.records.stages import StageMember
from hf_progressive.records.study import RecipeRecord, StudyRecord
from hf_progressive.report.formatting import NOTHING, decimals, percent, signed, signed_ends, two_ends
from hf_progressive.report.study_findings import study_unit
from hf_progressive.report.table import Table

_RATE_KEYS = ("training.learning_rate", "training.muon_learning_rate")  # chosen by the study; they have a column


def trunks_table(study: StudyRecord) -> Table:
    """Lay out what the trunks of a study are, a row per recipe."""
    rows = tuple(
        (
            recipe.name,
            ", ".join(f"{stage.name} until {percent(stage.until)}" for stage in recipe.trunk),
            ", ".join(_setting(key, value) for key, value in recipe.overrides.items() if key not in _RATE_KEYS)
            or NOTHING,
            ", ".join(f"{rate:g}" for rate in ([] if study.chooses_rates else _rates(recipe))) or NOTHING,
        )
        for recipe in study.recipes
        if recipe.trunk
    )
    return Table(header=("recipe", "grows from", "what it sets", "peak rate"), rows=rows, numbers=False)


def _setting(key: str, value: object) -> str:
    if isinstance(value, dict):
        value = " ".join(f"{name}={item}" for name, item in value.items())
    return f"{key}: {value}"


def _rates(recipe: RecipeRecord) -> list[float]:
    stages = [stage.learning_rate for stage in recipe.trunk if stage.learning_rate is not None]
    return list(dict.fromkeys([*stages, *(run.learning_rate for runs in recipe.points for run in runs.finished)]))


def seeds_table(study: StudyRecord) -> Table:
    """Lay out what the cost of every trunk is made of, a row per recipe, rung and seed."""
    unit = study_unit(study)
    rows = tuple(
        (
            recipe.name,
            rung.child,
            str(cost.seed),
            f"{cost.bits_per_byte:.4f}",
            unit.number(cost.c_lineage),
            unit.number(cost.c_child),
            unit.number(cost.c_scratch) + "*" * cost.extrapolated,
            f"{cost.value:.2f}",
        )
        for recipe in study.recipes
        if recipe.trunk
        for rung in recipe.rungs
        for cost in (() if rung.last_model_cost is None else rung.last_model_cost.by_seed)
    )
    header = ("recipe", "child", "seed", "bits per byte", f"{unit.name} of its stages", "of its own")
    return Table(header=(*header, "from scratch", "last-model cost"), rows=rows)


def against_table(study: StudyRecord) -> Table:
    """Lay out every recipe's bits per byte less the headline's, of the same seeds, a row per recipe and rung."""
    headline, rows = _by_rung(study.headline_recipe), []
    for recipe in study.recipes:
        for rung, found in _by_rung(recipe).items() if recipe.name != study.headline.recipe else ():
            pairs = [(own, headline[rung][seed]) for seed, own in found.items() if seed in headline.get(rung, {})]
            if not pairs:
                continue
            difference = mean_interval([own.bits_per_byte - other.bits_per_byte for own, other in pairs])
            spent = fmean((own.c_lineage + own.c_child) / (other.c_lineage + other.c_child) for own, other in pairs)
            rows.append(
                (
                    recipe.name,
                    rung,
                    ", ".join(str(own.seed) for own, _ in pairs),
                    *map(_mean_cost, zip(*pairs, strict=True)),
                    f"{spent:.3f}",
                    signed(difference.mean),
                    signed_ends(difference.low, difference.high),
                )
            )
    header = ("recipe", "child", "seeds of both", "last-model cost", "the headline's")
    compared = ("FLOPs over the headline's", "bits per byte − the headline's", "95 %")
    return Table(header=(*header, *compared), rows=tuple(rows))


def _mean_cost(costs: Sequence[SeedCost]) -> str:
    return f"{fmean(cost.value for cost in costs):.2f}" + "*" * any(cost.extrapolated for cost in costs)


def _by_rung(recipe: RecipeRecord) -> dict[str, dict[int, SeedCost]]:
    costs = {rung.child: rung.last_model_cost for rung in recipe.rungs}
    return {child: {seed.seed: seed for seed in cost.by_seed} for child, cost in costs.items() if cost is not None}


def baselines_table(study: StudyRecord) -> Table:
    """Lay out the finished baselines, a row per rung and seed, a column per share of the budget."""
    shares = sorted({run.fraction for runs in study.cold for run in runs.finished})
    rows = []
    for runs in study.cold:
        found = {run.fraction: run.bits_per_byte for run in runs.finished}
        if found:
            rates = ", ".join(f"{rate:g}" for rate in dict.fromkeys(run.learning_rate for run in runs.finished))
            rows.append((runs.rung, str(runs.seed), rates, *(decimals(found.get(share), 4) for share in shares)))
    return Table(header=("baseline", "seed", "peak rate", *map(percent, shares)), rows=tuple(rows))


def lengths_table(study: StudyRecord) -> Table:
    """Lay out the last-model cost of every trunk that is finished at several lengths, a row per length."""
    rows = tuple(
        (
            recipe.name,
            rung.child,
            percent(entry.fraction),
            decimals(entry.last_model_cost.value),
            two_ends(entry.last_model_cost.low, entry.last_model_cost.high),
            f"{entry.last_model_cost.extrapolated}/{entry.last_model_cost.seeds}",
        )
        for recipe in study.recipes
        for rung in recipe.rungs
        for entry in (rung.by_share if len(rung.by_share) > 1 else ())
    )
    header = ("recipe", "child", "finished at", "last-model cost", "95 %", "seeds extrapolated")
    return Table(header=header, rows=rows)


def members_table(study: StudyRecord) -> Table:
    """Lay out the members of trunks, a row per stage and kind, means over the seeds."""
    unit = study_unit(study)
    rows = []
    for recipe in study.recipes:
        ends = {member.end for member in recipe.members}
        for members in _by_stage(recipe):
            to = f" (to {members[0].end})" if len(ends) > 1 else ""
            rows.append(
                (
                    recipe.name,
                    f"{members[0].stage}{to}",
                    percent(members[0].until),
                    members[0].kind,
                    str(len(members)),
                    decimals(fmean(member.bits_per_byte for member in members), 4),
                    decimals(fmean(member.constant_bits_per_byte for member in members), 4),
                    _worth(members),
                    unit.number(fmean(member.flops for member in members)),
                )
            )
    header = (
        *("recipe", "stage", "until", "member by", "seeds", "bits per byte", "before it"),
        *("worth of its own budget", f"{unit.name} of its branch"),
    )
    return Table(header=header, rows=tuple(rows))


def _worth(members: Sequence[StageMember]) -> str:
    worths = [member.worth for member in members if member.worth is not None]
    if len(worths) < len(members):
        return NOTHING
    return percent(fmean(worths)) + "*" * any(member.extrapolated for member in members)


def _by_stage(recipe: RecipeRecord) -> list[Sequence[StageMember]]:
    groups: dict[tuple[str, float, str, str], list[StageMember]] = {}
    for member in recipe.members:
        groups.setdefault((member.end or "", member.until, member.stage, member.kind), []).append(member)
    return [groups[key] for key in sorted(groups)]
