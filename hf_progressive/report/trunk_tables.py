"""What a study measured of trunks, as tables: their cost at every length, and what their stages are worth."""

from collections.abc import Sequence
from statistics import fmean

from hf_progressive.records.study import RecipeRecord, StageMember, StudyRecord
from hf_progressive.report.formatting import NOTHING, decimals, percent, two_ends
from hf_progressive.report.study_findings import study_unit
from hf_progressive.report.table import Table


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
        for members in _by_stage(recipe):
            rows.append(
                (
                    recipe.name,
                    members[0].stage,
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
    groups: dict[tuple[float, str, str], list[StageMember]] = {}
    for member in recipe.members:
        groups.setdefault((member.until, member.stage, member.kind), []).append(member)
    return [groups[key] for key in sorted(groups)]
