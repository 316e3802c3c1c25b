"""The report of a study: a page to look at, the same in Markdown, and the figures as PNG, from study.json alone."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from hf_progressive.records.study import StudyRecord, read_study
from hf_progressive.report.figures.study import draw_matches, draw_penalties, draw_recipes
from hf_progressive.report.formatting import counted
from hf_progressive.report.glossary import OF_STUDIES, OF_TRUNK_STUDIES
from hf_progressive.report.page import Page, Plot, ReportPaths, Section, otherwise, settings_table, write_page
from hf_progressive.report.study_findings import find_in_study, seeds_of_recipes, study_unit
from hf_progressive.report.study_tables import models_table, phi_table, rates_table, recipes_table, steps_table
from hf_progressive.report.trunk_tables import (
    against_table,
    baselines_table,
    lengths_table,
    members_table,
    seeds_table,
    trunks_table,
)

_NO_COST = "A recipe has no cost where the finished baselines of a seed do not say what its trunk is worth."

_BOUNDS = (
    "Bars are 95 % intervals by Student's t, ticks single seeds, a triangle a lower bound: matched at the smallest "
    "budget tried."
)
_BARS = (
    "Bars are 95 % intervals by Student's t, ticks single seeds. An asterisk marks a cost whose budget from scratch "
    "is extrapolated in a seed or more."
)
_SHARED_BASELINES = (
    "All recipes of a seed share its baselines, whose chance is in every interval: which of two recipes is better, "
    "their bits per byte at equal FLOPs tell more surely.",
)
_PAIRED = (
    "The longest trunks of the seeds that both have, so that the baselines' chance is not in the difference; below 0 "
    "the recipe is better. At other FLOPs than the headline's it is no comparison of equals. Intervals are 95 % by "
    "Student's t over the seeds."
)
_DIFFERENT_SEEDS = (
    "Not all recipes have the same seeds, and each mean is over a recipe's own: compare two recipes on the seeds that "
    "both have.",
)
_RING_OF_CHAINS = (
    "a ring is where one seed's grown models come down to their own baseline, a triangle the smallest budget tried "
    "where they were below it already"
)
_RING_OF_TRUNKS = (
    "grown models stand at all that went into them, and a dotted line leads to the budget from scratch that a seed's "
    "is worth: a ring where its baselines have its bits per byte, a triangle where that is extrapolated"
)


def write_study_report(study_dir: str | os.PathLike[str]) -> ReportPaths:
    """Write the report of a study, finished or not, from its record."""
    folder = Path(study_dir)
    return write_page(study_report(read_study(folder)), folder, "study")[0]


def study_report(study: StudyRecord) -> Page:
    """Put a study's record on a page."""
    study = study.without_outcomes() if study.chooses_rates else study
    steps, unit = steps_table(study), study_unit(study)
    terms = OF_TRUNK_STUDIES if all(recipe.trunk for recipe in study.recipes) else OF_STUDIES
    facts = ((study.rungs, "rung"), (study.recipes, "recipe"), (study.config.seeds, "seed"))
    return Page(
        name=study.name,
        facts=(study.family, *(counted(len(some), word) for some, word in facts)),
        findings=find_in_study(study),
        answer=Section(title="What it saves, step by step", table=steps) if steps.rows else None,
        sections=(
            *_results(study),
            Section(title="How it was measured", terms=terms | {unit.name: f"{unit.definition}."}),
            Section(title="Settings", table=settings_table(_settings(study))),
        ),
    )


def _results(study: StudyRecord) -> Iterator[Section]:
    # Whatever the record allows to show.
    if study.headline.rungs:
        yield Section(
            title="Where grown models match their baselines",
            plot=Plot(name="matches", draw=partial(draw_matches, study)),
            notes=(
                "Every point is a finished model of a seed that has both, the line their mean. The dashed line is "
                f"where baselines end; {_RING_OF_TRUNKS if study.trunk else _RING_OF_CHAINS}.",
            ),
        )
    if any(recipe.trunk for recipe in study.recipes):
        yield Section(
            title="What the recipes are",
            table=trunks_table(study),
            notes=(
                "Until: the share of the last model's tokens at which a stage grows. What a recipe sets below growth, "
                "phi, training and trunk; all else is the baseline's.",
            ),
        )
    recipes = recipes_table(study)
    if recipes.rows:
        differ = any(len({*seeds_of_recipes(study, rung.name).values()}) > 1 for rung in study.rungs)
        yield Section(
            title="What the recipes cost" if study.trunk else "How much of what was spent before carries over",
            plot=Plot(name="recipes", draw=partial(draw_recipes, study)),
            table=recipes,
            notes=(
                _BARS if study.trunk else _BOUNDS,
                "The last column is bits per byte of the longest child less its baseline's; below 0 the child is "
                f"better. {_NO_COST if study.trunk else 'A recipe that trained too briefly to match has no η.'}",
                *(_SHARED_BASELINES if study.trunk else ()),
                *(_DIFFERENT_SEEDS if differ else ()),
            ),
        )
    yield from _trunks(study)
    if (phi := phi_table(study)) is not None:
        yield Section(
            title="What Φ changes",
            plot=Plot(name="penalties", draw=partial(draw_penalties, study)),
            table=phi,
            notes=(
                "Bits per byte less those of the same recipe without Φ, at each share of the budget; below 0 Φ helps. "
                "At equal FLOPs the estimates of Fisher information and subspace are paid for, at equal tokens they "
                "are free. Bars are 95 % intervals by Student's t over the seeds.",
            ),
        )
    rates = rates_table(study)
    if rates.rows:
        yield Section(title="Learning rates", table=rates, notes=tuple(_of_rates(study)))
    yield Section(title="The models", table=models_table(study), notes=("Tokens and FLOPs of the whole budget.",))


def _of_rates(study: StudyRecord) -> Iterator[str]:
    seeds = {row.seed for row in study.learning_rates}
    rungs = {row.rung for row in study.learning_rates}
    if len(seeds) == len(rungs) == 1:
        yield "One seed and one rung."
    elif len(rungs) == 1:
        yield "One rung."


def _trunks(study: StudyRecord) -> Iterator[Section]:
    lengths, members, seeds = lengths_table(study), members_table(study), seeds_table(study)
    if study.trunk and (against := against_table(study)).rows:
        yield Section(title=f"The recipes against “{study.headline.recipe}”", table=against, notes=(_PAIRED,))
    if seeds.rows:
        yield Section(
            title="Seed by seed",
            table=seeds,
            notes=(
                "Last-model cost: what its stages and the last model itself took, over the budget from scratch that "
                "has the same bits per byte on the same seed's baselines; an asterisk where that is extrapolated.",
            ),
        )
        yield Section(
            title="What the baselines end at",
            table=baselines_table(study),
            notes=("Bits per byte at shares of the whole budget, each at the end of its own decay.",),
        )
    if lengths.rows:
        yield Section(
            title="What shorter trunks cost",
            table=lengths,
            notes=(
                "Finished at this share of the budget's tokens, at equal bits per byte; a recipe's is its longest.",
            ),
        )
    if members.rows:
        yield Section(
            title="What the stages are worth as models",
            table=members,
            notes=(
                "After a decay on a branch, or as the average of the trunk's last weights; before it, the trunk "
                "itself at its constant rate. Worth: the budget from scratch with the same bits per byte, over the "
                "stage's own; where the study has baselines of its size. An asterisk marks what is extrapolated "
                "beyond their budgets in a seed or more.",
            ),
        )


def _settings(study: StudyRecord) -> dict[str, str]:
    config = study.config
    training = config.ladder.training
    settings = {
        "seeds": ", ".join(map(str, config.seeds)),
        "budgets of baselines": ", ".join(f"{value:g}" for value in config.cold_fractions),
        "budgets of children": ", ".join(f"{value:g}" for value in config.child_fractions),
        "corpus": _corpus(study),
        "context": str(config.ladder.model.context),
        "vocabulary": f"{study.data.vocab_size:,}",
    }
    own = ((recipe["name"], recipe.get("seeds")) for recipe in config.others.get("recipes", ()))
    settings |= {f"seeds of {name}": ", ".join(map(str, seeds)) for name, seeds in own if seeds}
    names = ("tokens_per_parameter", "batch_tokens", "learning_rate", "warmup_fraction", "decay_fraction")
    settings |= {name.replace("_", " "): f"{getattr(training, name):g}" for name in names}
    settings |= otherwise(config.ladder.others.get("rungs", ()))
    environment = {key.replace("_", " "): str(value) for key, value in study.environment.items()}
    return settings | {key: value for key, value in environment.items() if value}


def _corpus(study: StudyRecord) -> str:
    # Files by their names: where they lie is the machine's.
    data = study.config.ladder.data
    files = [Path(str(file)).name for file in data.others.get("files") or ()]
    return str(data.source) + (f" ({', '.join(files)})" if files else "")
