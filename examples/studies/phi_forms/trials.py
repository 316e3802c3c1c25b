"""What is compared: children without Φ and with each of its forms, at several peak rates."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_progressive.config import RecipeConfig, StudyConfig

FREE, FORMS = "free", ("proximal", "gradient")
RATES = (2e-3, 4e-3, 1e-3, 5e-4), (4e-3, 2e-3, 6e-3, 1e-3)
"""Peak rates by step, of depth and of width; the best is to lie between two others."""
HIGHER = {"gpt2": ((6e-3, 9e-3), (9e-3, 1.3e-2))}
"""More of them for a family whose best would otherwise be the highest."""
SCHEDULE = {"phi.schedule": "linear", "phi.until": 0.2}
"""λ falls to 0 by the end of the shorter child, which is the middle of the longer one."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One way of training a child."""

    rate: float
    """Peak learning rate."""

    form: str = FREE
    """How Φ is applied, or `free` for none."""

    kind: str = ""
    """Where Ω comes from."""

    weight: float = 0.0
    """λ."""

    @property
    def name(self) -> str:
        """Name of its recipe."""
        phi = "" if self.form == FREE else f", {self.kind}, λ {self.weight:g}"
        return f"{self.form}{phi}, rate {self.rate:g}"

    def recipe(self, rung: str, parent: RecipeConfig) -> RecipeConfig:
        """Return it as a study's recipe, from the models of another one."""
        changes: dict[str, Any] = {"training.inherited_learning_rate": self.rate}
        if self.form != FREE:
            changes |= {
                "phi.apply": self.form,
                "phi.fisher.kind": self.kind,
                "phi.ewc_lambda": self.weight,
                **SCHEDULE,
            }
        return RecipeConfig(
            name=f"{rung}: {self.name}",
            set={**parent.set, **changes},
            parent_recipe=parent.name,
            parent_fraction=parent.parent_fraction,
            rungs=(rung,),
        )


def trials_of(step: int, family: str) -> list[Trial]:
    """Return what is tried on the first seed, the most telling first; by width what depth needs most of."""
    kind = min(step, 1)
    rates = RATES[kind] + HIGHER.get(family, ((), ()))[kind]
    found = [Trial(rate=rate) for rate in rates]
    found += [Trial(rate=rate, form=form, kind="optimizer", weight=1.0) for form in FORMS for rate in rates]
    if step == 0:
        found += [Trial(rate=rate, form="proximal", kind="optimizer", weight=10.0) for rate in rates[:2]]
        found += [Trial(rate=rates[1], form="gradient", kind="optimizer", weight=10.0)]
        found += [Trial(rate=rates[0], form=form, kind="empirical", weight=1.0) for form in FORMS]
    return found


def with_trials(config: StudyConfig) -> StudyConfig:
    """Return a study with a recipe for every trial on every step, grown from its first recipe's models."""
    parent, rungs, family = config.recipes[0], config.measured_rungs, config.ladder.model.family
    tried = [trial.recipe(rung, parent) for step, rung in enumerate(rungs) for trial in trials_of(step, family)]
    return dataclasses.replace(config, recipes=(parent, *tried))


def best(found: Sequence[tuple[Trial, float]]) -> Trial:
    """Return the trial with the fewest bits per byte."""
    return min(found, key=lambda pair: pair[1])[0]
