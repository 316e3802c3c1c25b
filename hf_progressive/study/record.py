"""study.json, put together from the results of a study's tasks."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from accelerate import PartialState

from hf_progressive.config import RecipeConfig
from hf_progressive.data import Corpus
from hf_progressive.records.environment import environment
from hf_progressive.records.last_model import LastModelCost
from hf_progressive.records.stages import StageMember, TrunkStage
from hf_progressive.records.study import (
    CorpusSummary,
    FailedTask,
    Headline,
    RecipeRecord,
    Runs,
    StudyCosts,
    StudyModel,
    StudyRecord,
    SweptRate,
)
from hf_progressive.records.study_outcome import FamilyOutcome, RecipeStep
from hf_progressive.records.study_settings import StudySettings
from hf_progressive.study.members import stage_member
from hf_progressive.study.models import FinishedModel
from hf_progressive.study.outcome import family_outcome, phi_outcome, rung_outcome
from hf_progressive.study.plan import StudyPlan
from hf_progressive.study.results import StudyResults
from hf_progressive.study.trunk_outcome import trunk_family


def study_record(
    results: StudyResults, corpus: Corpus, state: PartialState, *, chooses_rates: bool = False
) -> StudyRecord:
    """Return what study.json holds, at any time of the study; while rates are being chosen, no outcome."""
    plan, config = results.plan, results.plan.config
    recipes = [_recipe_record(results, recipe) for recipe in config.recipes]
    headline = next(recipe for recipe in recipes if recipe.name == config.headline_recipe.name)
    finished = [model for model in plan.models if results.result(model.name) is not None]
    record = StudyRecord(
        name=config.name,
        family=config.ladder.model.family,
        complete=all(results.result(task.name) is not None for task in plan.tasks if not task.only_if_needed),
        finished=len(finished),
        runs=len(plan.models),
        headline=Headline(
            recipe=headline.name,
            overrides=headline.overrides,
            parent_fraction=headline.parent_fraction,
            rungs=tuple(step.outline() for step in headline.rungs),
            family=headline.family,
            phi_effect=phi_outcome(results),
            last_model_cost=_last_model_cost(headline, plan.rungs[-1]),
        ),
        rungs=tuple(_model_record(plan, index) for index in range(len(plan.rungs))),
        cold=tuple(_runs(results, rung, seed, models) for (rung, seed), models in plan.cold.items()),
        recipes=tuple(recipes),
        learning_rates=tuple(
            SweptRate(
                kind=kind,
                rung=model.initial.rung.name,
                learning_rate=rate,
                point=results.record(model),
                recipe=recipe,
                seed=model.initial.seed,
            )
            for kind, recipe, rate, model in _swept(plan)
        ),
        failed=tuple(_failures(results)),
        costs=_costs(results),
        data=CorpusSummary.from_dict(corpus.summary()),
        environment=_environment(results, state),
        config=StudySettings.from_dict(config.to_dict()),
    )
    return record.without_outcomes() if chooses_rates else record


def _environment(results: StudyResults, state: PartialState) -> dict[str, Any]:
    # Of the process that writes; a study may have been begun elsewhere, so that the models' devices stand beside.
    found = (results.result(model.name) or {} for model in results.plan.models)
    devices = sorted({result["device"] for result in found if "device" in result})
    return {**environment(state), "devices": ", ".join(devices)}


def _last_model_cost(recipe: RecipeRecord, last: str) -> LastModelCost | None:
    return next((step.last_model_cost for step in recipe.rungs if step.child == last), None)


def _swept(plan: StudyPlan) -> Iterator[tuple[Literal["cold", "child"], str | None, float, FinishedModel]]:
    for kind, rate, model in plan.swept:
        yield kind, None, rate, model
    for tried in plan.tried:
        yield "cold" if tried.recipe is None else "child", tried.recipe, tried.learning_rate, tried.deciding


def _recipe_record(results: StudyResults, recipe: RecipeConfig) -> RecipeRecord:
    plan = results.plan
    outcomes = (rung_outcome(results, recipe, rung) for rung in plan.config.measured_rungs)
    rungs, members = tuple(found for found in outcomes if found is not None), tuple(_members(results, recipe))
    return RecipeRecord(
        name=recipe.name,
        overrides=dict(recipe.set),
        parent_fraction=recipe.parent_fraction,
        parent_recipe=recipe.parent_recipe,
        carry_moments=recipe.carry_moments,
        rungs=rungs,
        family=_trunk_family(plan, recipe, rungs, members) if recipe.trunk else family_outcome(results, recipe),
        points=tuple(
            _runs(results, rung, seed, models)
            for (name, rung, seed), models in plan.children.items()
            if name == recipe.name
        ),
        trunk=tuple(_stages(plan, recipe)) if recipe.trunk else (),
        members=members,
    )


def _trunk_family(
    plan: StudyPlan, recipe: RecipeConfig, rungs: Sequence[RecipeStep], members: Sequence[StageMember]
) -> FamilyOutcome:
    last = plan.config.rungs_of(recipe)[-1]
    step = next((step for step in rungs if step.child == last), None)
    own = [member for member in members if member.end == last]
    return trunk_family(step, [rung.size for rung in plan.trunks[recipe.name, last].rungs], own)


def _members(results: StudyResults, recipe: RecipeConfig) -> Iterator[StageMember]:
    plan = results.plan
    for entry in (entry for entry in plan.members if entry.recipe == recipe.name):
        name, seed = entry.stage.initial.rung.name, entry.stage.initial.seed
        cold = plan.cold.get((name, seed))
        # Of the same name is not yet of the same size.
        same = cold is not None and cold[0].initial.rung.config.to_dict() == entry.stage.initial.rung.config.to_dict()
        constant = results.result(entry.stage.name) or {}
        works: tuple[tuple[Literal["decay", "average"], str], ...]
        works = ("decay", entry.decayed.name), ("average", entry.averaged.name)
        for kind, task in works:
            result = results.result(task) or {}
            if "bits_per_byte" in result and "bits_per_byte" in constant:
                yield stage_member(
                    entry,
                    kind,
                    bits_per_byte=result["bits_per_byte"],
                    constant_bits_per_byte=constant["bits_per_byte"],
                    baselines=results.points(cold) if cold is not None and same else None,
                )


def _stages(plan: StudyPlan, recipe: RecipeConfig) -> Iterator[TrunkStage]:
    # Of the trunk that ends in the recipe's largest rung.
    end = plan.config.rungs_of(recipe)[-1]
    seed = plan.config.seeds[0] if recipe.seeds is None else recipe.seeds[0]
    for stage in plan.children[recipe.name, end, seed][0].initial.lineage:
        size = stage.initial.rung.size
        yield TrunkStage(
            name=size.name,
            until=stage.fraction,
            parameters=size.parameters.total,
            flops_per_token=size.flops_per_token,
            learning_rate=stage.setup.learning_rate,
        )


def _runs(results: StudyResults, rung: str, seed: int, models: list[FinishedModel]) -> Runs:
    records = (results.record(model) for model in models)
    return Runs(rung=rung, seed=seed, points=tuple(record for record in records if record is not None))


def _model_record(plan: StudyPlan, index: int) -> StudyModel:
    size = plan.ladder.rungs[index].size
    return StudyModel(
        name=size.name,
        parameters=size.parameters.total,
        scaling_parameters=size.parameters.scaling,
        cold_steps=size.steps,
        cold_tokens=size.tokens,
        cold_flops=size.flops,
        flops_per_token=size.flops_per_token,
        c_parent_over_c_cold=plan.ladder.rungs[index - 1].size.flops / size.flops if index else None,
    )


def _failures(results: StudyResults) -> list[FailedTask]:
    found = ((task.name, results.result(task.name)) for task in results.plan.tasks)
    return [FailedTask(task=name, reason=result["failed"]) for name, result in found if result and "failed" in result]


def _costs(results: StudyResults) -> StudyCosts:
    # What the study itself spent: steps that several runs share once; estimates once per initial model.
    training = estimates = seconds = sweep = 0.0
    swept = {model.name for _, _, model in results.plan.swept} | {
        task.name for task in results.plan.rate_tasks if not task.held
    }
    for task in results.plan.tasks:
        result = results.result(task.name)
        if result is None or "failed" in result:
            continue
        seconds += result["seconds"]
        if isinstance(task.work, FinishedModel):
            training += result["flops"]["spent"]
            sweep += result["flops"]["spent"] if task.name in swept else 0.0
        else:
            estimates += sum(estimate["flops"] for estimate in result["estimates"].values())
    return StudyCosts(
        flops=training + estimates,
        training_flops=training,
        estimates_flops=estimates,
        learning_rates_flops=sweep,
        seconds=seconds,
    )
