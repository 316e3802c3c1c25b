"""What studies measured of growing, one observation for each seed of each step of a headline recipe."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from hf_progressive.records.last_model import SeedCost
from hf_progressive.records.matching import last_model_cost, transfer_efficiency
from hf_progressive.records.study import RecipeRecord, StudyRecord
from hf_progressive.records.study_outcome import RecipeStep


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One seed of one step."""

    study: str
    """The study's name."""

    family: str
    """The `model_type` of its models."""

    schedule: Literal["chain", "trunk"]
    """Whether the model was grown in a chain of finished ones or in a trunk."""

    seed: int
    """The seed."""

    parameters: int
    """N: parameters of the model that was grown."""

    tokens_per_parameter: float
    """r: tokens of its full budget from scratch per parameter that scaling counts."""

    growth: float
    """g: N over the parameters of the smallest model before it."""

    last_model_cost: float
    """(C_lineage + C_child) / C_scratch."""

    eta: float
    """(C_scratch − C_child) / C_lineage."""

    is_bound: bool = False
    """Whether the cost is an upper bound, and η a lower one."""

    is_extrapolated: bool = False
    """Whether the budget from scratch lies outside those at which baselines were finished."""


def observed(studies: Iterable[StudyRecord]) -> list[Observation]:
    """Return what the headline recipes of studies measured; a seed that stands in two studies counts once."""
    found: dict[tuple[object, ...], Observation] = {}
    for study in (study for study in studies if not study.chooses_rates):
        for item in _of_recipe(study, study.headline_recipe):
            key = (item.family, item.parameters, item.tokens_per_parameter, item.growth, item.seed)
            found.setdefault((*key, round(item.last_model_cost, 9)), item)
    return list(found.values())


def unmatched(studies: Iterable[StudyRecord]) -> list[str]:
    """Return a sentence for each trunk that is not worth a known budget in every seed: others are its better ones."""
    return [
        f"No cost is taken of {study.name}'s trunks to {step.child}: the finished baselines of"
        f" {step.seeds - step.matched} of {step.seeds} seeds do not say what budget from scratch it is worth."
        for study in studies
        for step in study.headline_recipe.rungs
        if study.trunk and step.last_model_cost is None
    ]


def _of_recipe(study: StudyRecord, recipe: RecipeRecord) -> Iterator[Observation]:
    sizes = {model.name: model for model in study.rungs}
    first = recipe.trunk[0].parameters if recipe.trunk else study.rungs[0].parameters
    for step in recipe.rungs:
        if recipe.trunk and step.last_model_cost is None:
            continue
        size = sizes[step.child]
        for cost in seed_costs(step):
            yield Observation(
                study=study.name,
                family=study.family,
                schedule="trunk" if recipe.trunk else "chain",
                seed=cost.seed,
                parameters=size.parameters,
                tokens_per_parameter=size.cold_tokens / size.scaling_parameters,
                growth=size.parameters / first,
                last_model_cost=cost.value,
                eta=transfer_efficiency(
                    child_flops=cost.c_child, cold_flops=cost.c_scratch, lineage_flops=cost.c_lineage
                ),
                is_bound=cost.at_most,
                is_extrapolated=cost.extrapolated,
            )


def seed_costs(step: RecipeStep) -> list[SeedCost]:
    """Return each seed's last-model cost; of an older record, of what went into its parent and child."""
    if step.last_model_cost is not None:
        return list(step.last_model_cost.by_seed)
    return [
        SeedCost(
            seed=seed.seed,
            value=last_model_cost(child_flops=seed.c_child, cold_flops=step.c_cold, lineage_flops=seed.c_parent),
            c_lineage=seed.c_parent,
            c_child=seed.c_child,
            c_scratch=step.c_cold,
            bits_per_byte=0.0,  # not in these records
            at_most=seed.reached == "at_most",
        )
        for seed in step.by_seed
        if seed.c_child is not None
    ]
