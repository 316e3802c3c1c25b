"""study.json: what a study found, from what, and what it cost."""

from typing import Any

from accelerate import PartialState

from hf_progressive.config import RecipeConfig
from hf_progressive.data import Corpus
from hf_progressive.records.environment import environment
from hf_progressive.study.models import FinishedModel
from hf_progressive.study.outcome import family_outcome, phi_outcome, rung_outcome
from hf_progressive.study.plan import StudyPlan
from hf_progressive.study.results import StudyResults

RECORD_FORMAT = 1
"""Version of the record's layout."""

_RUNG_KEYS = (
    "parent", "child", "c_parent_over_c_cold", "saving", "saving_low", "saving_high", "eta", "eta_low", "eta_high",
    "eta_bootstrap_low", "eta_bootstrap_high", "at_least", "matched", "gap_bits_per_byte", "gap_as_trained", "seeds",
)  # fmt: skip


def study_record(results: StudyResults, corpus: Corpus, state: PartialState) -> dict[str, Any]:
    """Return what study.json holds, at any time of the study.

    Args:
        results: What was measured.
        corpus: The corpus.
        state: The process.

    Returns:
        Plain values; `headline` first, then every recipe with its points.
    """
    plan, config = results.plan, results.plan.config
    recipes = [_recipe_record(results, recipe) for recipe in config.recipes]
    headline = next(recipe for recipe in recipes if recipe["name"] == config.headline_recipe.name)
    finished = [model for model in plan.models if results.result(model.name) is not None]
    return {
        "format": RECORD_FORMAT,
        "name": config.name,
        "family": config.ladder.model.family,
        "complete": len(finished) == len(plan.models),
        "finished": len(finished),
        "runs": len(plan.models),
        "headline": {
            "recipe": headline["name"],
            "overrides": headline["overrides"],
            "parent_fraction": headline["parent_fraction"],
            "rungs": [{key: rung[key] for key in _RUNG_KEYS} for rung in headline["rungs"]],
            "family": headline["family"],
            "phi_effect": phi_outcome(results),
        },
        "rungs": [_size_record(plan, index) for index in range(len(plan.rungs))],
        "cold": [
            {"rung": rung, "seed": seed, "points": _points(results, models)}
            for (rung, seed), models in plan.cold.items()
        ],
        "recipes": recipes,
        "learning_rates": [
            {"kind": kind, "rung": model.initial.rung.name, "learning_rate": rate, "point": results.record(model)}
            for kind, rate, model in plan.swept
        ],
        "failed": _failures(results),
        "costs": _costs(results),
        "data": corpus.summary(),
        "environment": environment(state),
        "config": config.to_dict(),
    }


def _recipe_record(results: StudyResults, recipe: RecipeConfig) -> dict[str, Any]:
    plan = results.plan
    outcomes = [rung_outcome(results, recipe, rung) for rung in plan.rungs[1:]]
    return {
        "name": recipe.name,
        "overrides": recipe.set,
        "parent_fraction": recipe.parent_fraction,
        "parent_recipe": recipe.parent_recipe,
        "carry_moments": recipe.carry_moments,
        "rungs": [outcome for outcome in outcomes if outcome is not None],
        "family": family_outcome(results, recipe),
        "points": [
            {"rung": rung, "seed": seed, "points": _points(results, models)}
            for (recipe_name, rung, seed), models in plan.children.items()
            if recipe_name == recipe.name
        ],
    }


def _points(results: StudyResults, models: list[FinishedModel]) -> list[dict[str, Any]]:
    records = [results.record(model) for model in models]
    return [record for record in records if record is not None]


def _size_record(plan: StudyPlan, index: int) -> dict[str, Any]:
    size = plan.ladder.rungs[index].size
    before = plan.ladder.rungs[index - 1].size.flops if index else None
    return {
        "name": size.name,
        "parameters": size.parameters.total,
        "scaling_parameters": size.parameters.scaling,
        "cold_steps": size.steps,
        "cold_tokens": size.tokens,
        "cold_flops": size.flops,
        "flops_per_token": size.flops_per_token,
        "c_parent_over_c_cold": None if before is None else before / size.flops,
    }


def _failures(results: StudyResults) -> list[dict[str, str]]:
    found = ((task.name, results.result(task.name)) for task in results.plan.tasks)
    return [{"task": name, "reason": result["failed"]} for name, result in found if result and "failed" in result]


def _costs(results: StudyResults) -> dict[str, Any]:
    # What the study itself spent: steps that several runs share once; estimates once per initial model.
    training = estimates = seconds = sweep = 0.0
    swept = {model.name for _, _, model in results.plan.swept}
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
    return {
        "flops": training + estimates,
        "training_flops": training,
        "estimates_flops": estimates,
        "learning_rates_flops": sweep,
        "seconds": seconds,
    }
