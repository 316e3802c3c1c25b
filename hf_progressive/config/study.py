"""A study, read from strict YAML: recipes × seeds × rungs on one ladder."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from hf_progressive.config import strict_yaml
from hf_progressive.config.checks import (
    require,
    require_distinct,
    require_folder_name,
    require_in_range,
    require_rising,
)
from hf_progressive.config.credentials import refuse_credentials
from hf_progressive.config.ladder import LadderConfig, find_config, merged, overridden, plain
from hf_progressive.config.model import RungConfig
from hf_progressive.config.phi import require_weight_in_study
from hf_progressive.config.ranges import LearningRate, Range, shown

_Budget = Annotated[float, Range(0, 2, above=True)]
_StudySeed = Annotated[int, Range(0, 2_000_000)]  # times 1,000, and the ladder's: NumPy's seeds end at 2³² − 1
_ROUNDING = 1e-9
_RECIPE_SECTIONS = ("growth", "phi", "training", "trunk")
_BASELINE_KEYS = ("training.tokens_per_parameter", "training.budget_parameters", "training.inherited_fraction")

_NO_TRUNK = "ladder.schedule: a study's trunks are its recipes'; leave it out"


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """One recipe for the rungs measured; baselines, and the first rung of chains, are trained as the ladder says."""

    name: str
    """The recipe's name, in tables and plots."""

    trunk: tuple[RungConfig, ...] = ()
    """The stages of a trunk below the rung that is measured, each with its `until`; empty for a chain. A trunk comes
    from none of the ladder's other rungs, so that in a study of trunks alone every rung is measured."""

    members: bool = False
    """Whether every stage of the trunk is measured as a finished model, too: after a decay on a branch, and as an
    average of its last weights, of the lengths that `trunk` in `set` says."""

    set: dict[str, Any] = field(default_factory=dict)
    """Dotted overrides of the ladder below `growth`, `phi`, `training` and `trunk` (`phi.gamma: 1e-4`)."""

    parent_fraction: _Budget = 0.5
    """Share of its baseline's budget that a grown parent trains for, decay included, before a child is grown from it.
    The first rung always trains for its whole budget."""

    parent_recipe: str | None = None
    """A recipe named above, whose models are the parents on every rung; None takes this recipe's own."""

    carry_moments: bool = False
    """Grow Adam's moments along with the weights; otherwise they begin at 0."""

    rungs: tuple[str, ...] | None = None
    """Rungs to measure; None measures all grown ones. The parents that these need are trained in any case."""

    seeds: tuple[_StudySeed, ...] | None = None
    """Seeds to measure; None takes the study's."""

    child_fractions: tuple[_Budget, ...] | None = None
    """Shares of the baseline's budget at which a child is finished, of a trunk with its stages; None takes the
    study's."""

    reference: str | None = None
    """The recipe without Φ that this one, with Φ, is compared with; None takes the study's."""

    def __post_init__(self) -> None:
        require(self.name.strip() != "", "name: it is empty")
        require(self.name.isprintable(), f"name: {self.name!r} has characters that cannot be shown; leave them out")
        require_in_range(self)
        for name, listed in (("rungs", self.rungs), ("seeds", self.seeds)):
            require(listed is None or len(listed) > 0, f"{name}: the list is empty; leave it out to measure all")
            require_distinct(name, listed or ())
        for key, value in self.set.items():
            section = key.partition(".")[0]
            if key in _RECIPE_SECTIONS and isinstance(value, dict) and value:
                first = next(iter(value))
                raise ValueError(f"set.{key}: its keys are set one by one; write {key}.{first}: {shown(value[first])}")
            require(
                section in _RECIPE_SECTIONS and "." in key,
                f"set.{key}: a recipe changes keys below {', '.join(_RECIPE_SECTIONS)} alone; "
                "change the ladder instead",
            )
            require(
                key != "training.optimizer",
                f"set.{key}: the baseline trains by the ladder's optimizer, so that growth is what is compared; set"
                " ladder.training.optimizer instead",
            )
            require(key not in _BASELINE_KEYS, f"set.{key}: it sizes the baseline too; change the ladder instead")
        require(bool(self.trunk) or not self.members, "members: only a trunk has them; list its stages in trunk")
        if self.trunk:
            require(self.parent_recipe is None, "parent_recipe: a trunk trains its own stages; leave it out")
            require(not self.carry_moments, "carry_moments: in a trunk, set trunk.moments: grown instead")
            require(
                self.parent_fraction == type(self).parent_fraction,
                "parent_fraction: without effect in a trunk, whose stages train up to their until; leave it out",
            )
            for index, stage in enumerate(self.trunk):
                require(stage.until is not None, f"trunk.{index}.until: is missing; after which share does it grow?")


@dataclass(frozen=True, kw_only=True)
class LearningRatesConfig:
    """Sweeps of peak learning rates on one rung."""

    rates: tuple[LearningRate, ...] = ()
    """Rates of the baseline and of trunks, before anything else: each side then takes its best one on all seeds, the
    baseline that of its whole budget, a recipe that of its longest."""

    seeds: tuple[_StudySeed, ...] | None = None
    """Seeds on which these `rates` are tried; the best of a side has the lowest mean, and none on which training
    failed is taken. None tries the first."""

    recipes: tuple[str, ...] | None = None
    """Recipes that are tried at these `rates`; the others take the first one's best. None tries all."""

    cold: tuple[LearningRate, ...] = ()
    """Rates of the baseline, each on its whole budget of the first seed; beside `rates` they are not chosen from."""

    child: tuple[LearningRate, ...] = ()
    """Rates of the headline recipe's child, each finished at the recipe's `parent_fraction`, of the first seed."""

    rung: str | None = None
    """The rung; None takes the first that is measured."""

    def __post_init__(self) -> None:
        require_in_range(self)
        for name in ("rates", "seeds", "recipes", "cold", "child"):
            require_distinct(name, getattr(self, name) or ())
        for name, which in (("seeds", "the first"), ("recipes", "all")):
            listed = getattr(self, name)
            require(listed is None or bool(self.rates), f"{name}: no rates are tried on them; list `rates` too")
            require(listed is None or len(listed) > 0, f"{name}: the list is empty; leave it out to try {which}")


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A study: every recipe's children and their baselines, finished at several budgets, from several seeds."""

    name: str = "study"
    """The study's name, which is its folder's below runs/."""

    ladder: LadderConfig
    """The ladder; in YAML it may name a `base` to start from, the path or name of a ladder's configuration."""

    seeds: tuple[_StudySeed, ...] = (0, 1, 2)
    """Seeds of initial weights, of growth, and of the order of the data; validation and tokenizer stay the same."""

    cold_fractions: tuple[_Budget, ...] = (0.5, 0.65, 0.8, 1.0)
    """Shares of its budget at which a baseline is finished; 1 must be among them."""

    child_fractions: tuple[_Budget, ...] = (0.2, 0.35, 0.5, 0.65, 0.8)
    """Shares of its baseline's budget at which a child is finished."""

    recipes: tuple[RecipeConfig, ...]
    """The recipes."""

    headline: str | None = None
    """The recipe whose result is the study's; None takes the first."""

    reference: str | None = None
    """The recipe without Φ that recipes with Φ are compared with; None makes no comparison."""

    learning_rates: LearningRatesConfig = field(default_factory=LearningRatesConfig)
    """A sweep of peak learning rates."""

    def __post_init__(self) -> None:
        require_in_range(self)
        require_folder_name(self.name)
        require(
            len(self.ladder.rungs) > 1 or self.of_trunks,
            "ladder.rungs: a study needs two rungs or more, unless all of its recipes are trunks",
        )
        require(self.ladder.schedule == "chain", _NO_TRUNK)
        source = self.ladder.rungs[0].source
        require(source is None, f"ladder.rungs.0: a study trains its first rung itself; leave out source {source!r}")
        for section, reason in {"core": "scores no model on CORE", "publish": "publishes no model"}.items():
            require(
                getattr(self.ladder, section) is None,
                f"ladder.{section}: without effect in a study, which {reason}; leave it out, or write"
                f" `{section}: null` where the base has it",
            )
        require(
            isinstance(self.ladder.cold, str),
            "ladder.cold: its names are without effect in a study, which trains every rung from scratch; leave it out,"
            " or write `cold: none` where the base has it",
        )
        require(len(self.recipes) > 0, "recipes: the list is empty; name at least one")
        require(len(self.seeds) > 0 and len(set(self.seeds)) == len(self.seeds), "seeds: give distinct seeds")
        require_rising("cold_fractions", self.cold_fractions)
        require_rising("child_fractions", self.child_fractions)
        require(1.0 in self.cold_fractions, "cold_fractions: 1.0 is missing, the budget that a child has to match")
        names = [recipe.name for recipe in self.recipes]
        for index, recipe in enumerate(self.recipes):
            self._check_recipe(recipe, f"recipes.{index}", names[:index])
        references = {f"recipes.{index}.reference": recipe.reference for index, recipe in enumerate(self.recipes)}
        for key, name in {"headline": self.headline, "reference": self.reference, **references}.items():
            require(name is None or name in names, f"{key}: there is no recipe {name!r}; {_nearest(name, names)}")
            if name is not None and key != "headline":
                require(
                    self.ladder_of(self.recipe(name)).phi.is_off,
                    f"{key}: the recipe {name!r} has Φ on; name one without",
                )
        self._check_rates(names)

    def _check_rates(self, names: list[str]) -> None:
        sweep = self.learning_rates
        if sweep.rung is not None:
            self._check_rung(sweep.rung, "learning_rates.rung")
        if sweep.rates:
            require(
                self.of_trunks, "learning_rates.rates: for studies whose recipes are all trunks; sweep cold and child"
            )
            for recipe in self.recipes:
                own = any(
                    ladder.training_of(end).inherited_learning_rate or "learning_rate" in ladder.rungs[-1].training
                    for end in self.rungs_of(recipe)
                    for ladder in (self.trunk_of(recipe, end),)
                )
                require(
                    not own,
                    f"learning_rates.rates: the last rung of recipe {recipe.name!r} has a rate of its own, which none "
                    "of these would change; leave out inherited_learning_rate and the rung's training.learning_rate",
                )
        for seed in sweep.seeds or ():
            require(
                seed in self.seeds, f"learning_rates.seeds: {seed} is none of the study's seeds, {list(self.seeds)}"
            )
        for name in sweep.recipes or ():
            require(name in names, f"learning_rates.recipes: there is no recipe {name!r}; {_nearest(name, names)}")

    def _check_recipe(self, recipe: RecipeConfig, where: str, above: list[str]) -> None:
        require(recipe.name not in above, f"{where}.name: {recipe.name!r} is given twice")
        require(
            recipe.parent_recipe is None or recipe.parent_recipe in above,
            f"{where}.parent_recipe: no recipe above is named {recipe.parent_recipe!r}; "
            f"{_nearest(recipe.parent_recipe, above) if above else 'none stands above the first; leave it out'}",
        )
        require(
            recipe.parent_recipe is None or not self.recipe(recipe.parent_recipe).trunk,
            f"{where}.parent_recipe: {recipe.parent_recipe!r} is a trunk, whose models are no parents; name a chain",
        )
        for name in recipe.rungs or ():
            self._check_rung(name, f"{where}.rungs")
        for seed in recipe.seeds or ():
            require(seed in self.seeds, f"{where}.seeds: {seed} is none of the study's seeds, {list(self.seeds)}")
        if recipe.child_fractions is not None:
            require_rising(f"{where}.child_fractions", recipe.child_fractions)
        if recipe.trunk:
            self._check_trunk(recipe, where)
            return
        try:
            ladder = self.ladder_of(recipe)
        except ValueError as error:
            raise ValueError(f"{where}.set.{error}") from None
        shortest = min(*self.fractions_of(recipe), recipe.parent_fraction)
        warmup = ladder.training.warmup_fraction
        require(
            warmup < shortest,
            f"{where}: the warm-up takes {warmup} of the baseline's budget, the shortest child has {shortest}; "
            f"lower training.warmup_fraction",
        )

    def _check_trunk(self, recipe: RecipeConfig, where: str) -> None:
        require(
            len(self.cold_fractions) > 1, "cold_fractions: a trunk is read on the baseline's curve; give two or more"
        )
        last = recipe.trunk[-1].until
        assert last is not None
        for end in self.rungs_of(recipe):
            try:
                ladder = self.trunk_of(recipe, end)
                batches = {ladder.training_of(rung.name).batch_tokens for rung in ladder.rungs}
            except ValueError as error:
                raise ValueError(f"{where}: {str(error).replace('rungs.', 'trunk.')}") from None  # its stages there
            require(len(batches) == 1, f"{where}.trunk: the batch is {sorted(batches)} tokens; keep to one in a trunk")
            constant = 1 - ladder.training_of(end).decay_fraction
            for fraction in self.fractions_of(recipe):
                require(
                    last <= fraction * constant + _ROUNDING,
                    f"{where}.child_fractions: finished at {fraction:g}, {end} decays from {fraction * constant:g} on,"
                    f" before the trunk has grown into it at {last:g}; finish it later, or grow earlier",
                )

    def _check_rung(self, name: str, where: str) -> None:
        known, kind = self.measured_rungs, "rung" if self.of_trunks else "grown rung"
        require(name in known, f"{where}: {name!r} is no {kind}; {_nearest(name, known)}")

    @property
    def seeds_of_rates(self) -> tuple[int, ...]:
        """The seeds on which `learning_rates.rates` are tried."""
        return self.learning_rates.seeds or self.seeds[:1]

    @property
    def of_trunks(self) -> bool:
        """Whether all recipes are trunks, so that no rung comes from another."""
        return all(recipe.trunk for recipe in self.recipes)

    @property
    def measured_rungs(self) -> list[str]:
        """Names of the rungs that recipes are measured on: all but the first, which a chain grows from."""
        return [rung.name for rung in self.ladder.rungs[0 if self.of_trunks else 1 :]]

    def rungs_of(self, recipe: RecipeConfig) -> list[str]:
        """Return the names of the rungs that a recipe is measured on, from the smallest."""
        return [name for name in self.measured_rungs if recipe.rungs is None or name in recipe.rungs]

    @property
    def headline_recipe(self) -> RecipeConfig:
        """The recipe whose result is the study's."""
        return self.recipes[0] if self.headline is None else self.recipe(self.headline)

    def recipe(self, name: str) -> RecipeConfig:
        """Return the recipe of a name."""
        return next(recipe for recipe in self.recipes if recipe.name == name)

    def ladder_of(self, recipe: RecipeConfig) -> LadderConfig:
        """Return the ladder with a recipe's overrides in it; of a trunk, that which ends in its largest rung."""
        if recipe.trunk:
            return self.trunk_of(recipe, self.rungs_of(recipe)[-1])
        return overridden(self.ladder.to_dict(), recipe.set)

    def trunk_of(self, recipe: RecipeConfig, end: str) -> LadderConfig:
        """Return a recipe's trunk as a ladder: its stages, and the rung of the study that it ends in."""
        last = next(rung for rung in self.ladder.rungs if rung.name == end)
        rungs = [rung.to_dict() for rung in (*recipe.trunk, last)]
        ladder = self.ladder.to_dict()
        del ladder["training"]["inherited_fraction"], ladder["growth"]["parent"]  # the study's chains may state them
        return overridden({**ladder, "schedule": "trunk", "rungs": rungs, "cold": "none"}, recipe.set)

    def fractions_of(self, recipe: RecipeConfig) -> tuple[float, ...]:
        """Return the shares of the baseline's budget at which a recipe's children are finished."""
        return self.child_fractions if recipe.child_fractions is None else recipe.child_fractions

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain values, such that reading them back gives an equal one."""
        recipes = [{**plain(recipe), "trunk": [stage.to_dict() for stage in recipe.trunk]} for recipe in self.recipes]
        return {**plain(self), "ladder": self.ladder.to_dict(), "recipes": recipes}


def _nearest(name: str | None, known: Iterable[str]) -> str:
    return strict_yaml.nearest(str(name), known)


def load_study_config(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> StudyConfig:
    """Read a study's YAML file and check it.

    Args:
        path: The file, or the name of a configuration that ships with the package.
        overrides: Dotted overrides, `ladder.training.learning_rate=1e-3`, whose values are YAML.

    Returns:
        The checked configuration, its ladder whole.

    Raises:
        FileNotFoundError: There is no such file, or the ladder's `base` is none.
        ValueError: A key is unknown, or a value has the wrong type or range; the message names its dotted path.
    """
    file = find_config(path)
    mapping = strict_yaml.apply_overrides(strict_yaml.read_yaml(file), overrides)
    try:
        refuse_credentials(mapping)  # before any message that repeats a value
        if "rungs" in mapping and "ladder" not in mapping:
            raise ValueError(
                "is a ladder's configuration; `hf-progressive ladder` runs it, and a study has `ladder.base`"
            )
        ladder = mapping.get("ladder")
        if isinstance(ladder, dict) and ladder.get("schedule") == "trunk":
            raise ValueError(_NO_TRUNK)
        if isinstance(ladder, dict) and "base" in ladder:
            mapping["ladder"] = _on_base(ladder, file.parent)
        config = strict_yaml.build(StudyConfig, mapping)
        ladders = map(config.ladder_of, config.recipes)
        penalties = [[ladder.phi_of(rung.name) for rung in ladder.rungs] for ladder in ladders]
        require_weight_in_study(mapping["ladder"], zip([r.set for r in config.recipes], penalties, strict=True))
        return config
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _on_base(ladder: dict[str, Any], folder: Path) -> dict[str, Any]:
    changes = dict(ladder)
    base = changes.pop("base")
    require(
        isinstance(base, str), f"ladder.base: expected the path or name of a ladder's configuration, got {shown(base)}"
    )
    beside = folder / base
    found = strict_yaml.read_yaml(beside if beside.is_file() else find_config(base))
    require("ladder" not in found, f"ladder.base: {base} is a study's configuration; name a ladder's")
    return merged(found, changes)
