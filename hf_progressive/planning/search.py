"""Where a trunk would grow so that its last model costs least, by the trunks that studies measured.

What a trunk takes is known before it runs: each stage's tokens at its FLOPs per token. What it is worth, the share of
the budget from scratch that has its bits per byte, is interpolated between measured recipes that grow as often and by
the same settings, by where they grow first and last and by how shallow and how narrow they begin. Outside of what was
measured nothing is said.
"""

import copy
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Final

from hf_progressive.config import RungConfig
from hf_progressive.planning.ladder_plan import LadderPlan
from hf_progressive.records.rung import LAYER_FIELDS, WIDTH_FIELDS
from hf_progressive.records.study import RecipeRecord, StudyRecord

_STEPS: Final = 10  # shares are tried in steps of a tenth
_SHOWN: Final = 5  # proposals
_NEARLY: Final = 1.25  # factor by which a ratio of sizes may lie outside of the measured ones
_SCALE: Final = 0.1  # a distance of this in a share counts as one of a factor of 2 in size
_SETTINGS: Final = (
    "growth.method",
    "growth.options",
    "trunk.moments",
    "trunk.rewarm",
    "trunk.rewarm_fraction",
    "training.optimizer",
)
"""What of a ladder's settings decides how its trunk grows; None in a record that is older than one of them."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What decides what a trunk is worth."""

    growths: int
    """How often it grows."""

    first: float
    """Share of the last model's tokens at which it first grows."""

    last: float
    """Share at which it last grows."""

    depth: float
    """Layers of its first stage over those of its last model."""

    width: float
    """Widths, likewise."""

    def distance(self, other: "Shape") -> float:
        """Return how unlike two trunks are that grow equally often."""
        shares = ((self.first - other.first) / _SCALE, (self.last - other.last) / _SCALE)
        return math.hypot(*shares, math.log2(self.depth / other.depth), math.log2(self.width / other.width))


@dataclass(frozen=True, kw_only=True)
class MeasuredTrunk:
    """A recipe of a study that is a trunk, with what it was worth."""

    name: str
    """The study and the recipe."""

    family: str
    """The `model_type` of its models."""

    settings: dict[str, Any]
    """How it grew: a ladder's settings by their dotted keys."""

    shape: Shape
    """Where it grew."""

    worth: float
    """The budget from scratch with its bits per byte, over the full one: mean over the seeds."""

    relative_low: float | None
    """Lower end of its last-model cost's interval, over the cost."""

    relative_high: float | None
    """Upper end, likewise."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A way for a trunk to grow, and what its last model would cost."""

    until: dict[str, float]
    """By rung that it passes through, the share at which the next one grows from it."""

    takes: float
    """FLOPs of the trunk, over those of its last model from scratch."""

    last_model_cost: float | None
    """The cost, `takes` over `worth`; None where no measured recipe says it."""

    worth: float | None = None
    """The budget from scratch, as a share of the full one, that has the bits per byte of a trunk that grows so."""

    low: float | None = None
    """Lower end of an interval as wide as the nearest recipe's."""

    high: float | None = None
    """Upper end."""

    nearest: str | None = None
    """The measured recipe that is most like it."""

    changes: dict[str, Any] = field(default_factory=dict)
    """Settings in which that recipe differs from the configuration, by their dotted keys."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self)


def measured_trunks(studies: Sequence[StudyRecord]) -> list[MeasuredTrunk]:
    """Return the trunks among the recipes of studies, each with the rung that it was measured to end in.

    Of a study, the seeds count that all its trunks to a rung have, so that none gains by luckier ones.
    """
    return [trunk for study in studies for recipe in study.recipes for trunk in _measured(study, recipe)]


def _measured(study: StudyRecord, recipe: RecipeRecord) -> Iterator[MeasuredTrunk]:
    step = next((rung for rung in reversed(recipe.rungs) if rung.last_model_cost is not None), None)
    cost = None if step is None else step.last_model_cost
    if not recipe.trunk or step is None or cost is None or not cost.by_seed:
        return
    steps = [other for each in study.recipes if each.trunk for other in each.rungs if other.child == step.child]
    costs = [other.last_model_cost.by_seed for other in steps if other.last_model_cost is not None]
    common = set.intersection(*({seed.seed for seed in by_seed} for by_seed in costs))
    paired = [seed for seed in cost.by_seed if seed.seed in common] or cost.by_seed
    # The record of the configuration says how deep and wide the sizes are.
    shared = study.config.ladder.model.others.get("fields") or {}
    recipes = {entry["name"]: entry for entry in study.config.others["recipes"]}
    ends = {rung["name"]: {**shared, **rung} for rung in study.config.ladder.others["rungs"]}
    first, end = {**shared, **recipes[recipe.name]["trunk"][0]}, ends[step.child]
    yield MeasuredTrunk(
        name=f"{study.name}, {recipe.name!r}",
        family=study.family,
        settings=_settings(study.config.ladder.to_dict(), recipe.overrides),
        shape=Shape(
            growths=len(recipe.trunk),
            first=recipe.trunk[0].until,
            last=recipe.trunk[-1].until,
            depth=_size(first, LAYER_FIELDS) / _size(end, LAYER_FIELDS),
            width=_size(first, WIDTH_FIELDS) / _size(end, WIDTH_FIELDS),
        ),
        worth=fmean(seed.c_scratch for seed in paired) / step.c_cold,
        relative_low=None if cost.low is None else cost.low / cost.value,
        relative_high=None if cost.high is None else cost.high / cost.value,
    )


def _settings(ladder: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    # What decides how a ladder's trunk grows, with the overrides of a recipe.
    sections = {name: copy.deepcopy(ladder.get(name, {})) for name in ("growth", "trunk", "training")}
    for path, value in overrides.items():
        section, *between, last = path.split(".")
        place = sections.setdefault(section, {})
        for key in between:
            place = place.setdefault(key, {})
        place[last] = value
    return {key: sections[key.split(".")[0]].get(key.split(".")[1]) for key in _SETTINGS}


def _size(rung: Mapping[str, Any], fields: Sequence[str]) -> float:
    # A rung that is sized by its depth is as wide as that says.
    return float(next(rung[field] for field in (*fields, "depth") if rung.get(field)))


@dataclass(frozen=True, kw_only=True)
class TrunkSearch:
    """Trunks through a ladder's rungs, compared by what their last model would cost."""

    plan: LadderPlan
    """The ladder; of a chain, trunks through its rungs are compared."""

    trunks: tuple[MeasuredTrunk, ...]
    """What was measured."""

    def __post_init__(self) -> None:
        if not self._smaller:
            raise ValueError("search: a trunk grows from a smaller rung that it trains itself; name two rungs or more")
        if not self.trunks:
            raise ValueError(
                "search: it goes by trunks that were measured, and no study with one is named; give --recipe-eta"
                " STUDY.json, such as examples/studies/trunk/study.json of the repository"
            )

    @property
    def _smaller(self) -> tuple[RungConfig, ...]:
        # The rungs that a trunk can pass through: it trains the first of them itself.
        return tuple(rung for rung in self.plan.config.rungs[:-1] if rung.source is None)

    @property
    def _latest(self) -> float:
        return 1 - self.plan.config.training_of(self.plan.config.rungs[-1].name).decay_fraction

    def as_configured(self) -> Proposal | None:
        """Return what the configuration's own shares would cost; None of a chain, which has none."""
        if self.plan.config.schedule != "trunk":
            return None
        own = [trunk for trunk in self.trunks if not self._changes(trunk)]
        return self._proposal({rung.name: rung.until or 1.0 for rung in self.plan.config.rungs[:-1]}, own)

    def best(self) -> list[Proposal]:
        """Return the proposals that cost least, the cheapest first; none where none lies within what was measured.

        All choices among the smaller rungs are tried, with every rising sequence of shares in steps of a tenth that
        leaves the last rung its decay, and with the settings of every measured trunk.
        """
        shares = [step / _STEPS for step in range(1, _STEPS) if step / _STEPS <= self._latest + 1e-9]
        alike: list[list[MeasuredTrunk]] = []
        for trunk in self.trunks:
            same = next((group for group in alike if group[0].settings == trunk.settings), None)
            alike.append([trunk]) if same is None else same.append(trunk)
        tried = (
            self._proposal(dict(zip((rung.name for rung in stages), until, strict=True)), group)
            for group in alike
            for count in sorted({trunk.shape.growths for trunk in group})
            for stages in itertools.combinations(self._smaller, count)
            for until in itertools.combinations(shares, count)
        )
        known = [(proposal.last_model_cost, proposal) for proposal in tried if proposal.last_model_cost is not None]
        return [proposal for _, proposal in sorted(known, key=lambda pair: pair[0])[:_SHOWN]]

    def _changes(self, trunk: MeasuredTrunk) -> dict[str, Any]:
        own = _settings(self.plan.config.to_dict(), {})
        return {key: value for key, value in trunk.settings.items() if value not in (None, own[key])}

    def _proposal(self, until: dict[str, float], trunks: Sequence[MeasuredTrunk]) -> Proposal:
        # What measured trunks, all of the same settings, say of one way to grow.
        takes, shape = self._takes(until), self._shape(until)
        alike = [trunk for trunk in trunks if trunk.shape.growths == shape.growths]
        if not _is_within(shape, [trunk.shape for trunk in alike]):
            return Proposal(until=until, takes=takes, last_model_cost=None)
        nearest = min(alike, key=lambda trunk: trunk.shape.distance(shape))
        worth = _interpolated(shape, alike)
        cost = takes / worth
        return Proposal(
            until=until,
            takes=takes,
            last_model_cost=cost,
            worth=worth,
            low=None if nearest.relative_low is None else cost * nearest.relative_low,
            high=None if nearest.relative_high is None else cost * nearest.relative_high,
            nearest=nearest.name,
            changes=self._changes(nearest),
        )

    def _takes(self, until: dict[str, float]) -> float:
        per_token = {rung.name: rung.size.flops_per_token for rung in self.plan.rungs}
        whole, total, before = per_token[self.plan.rungs[-1].name], 0.0, 0.0
        for name, share in until.items():
            total += (share - before) * per_token[name] / whole
            before = share
        return total + 1 - before

    def _shape(self, until: dict[str, float]) -> Shape:
        configs = {rung.name: rung.size.config for rung in self.plan.rungs}
        first, end, shares = configs[next(iter(until))], configs[self.plan.rungs[-1].name], list(until.values())
        depth, width = first.num_hidden_layers / end.num_hidden_layers, first.hidden_size / end.hidden_size
        return Shape(growths=len(shares), first=shares[0], last=shares[-1], depth=depth, width=width)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        configured = self.as_configured()
        begins = [self._shape({rung.name: self._latest}) for rung in self._smaller]
        shapes = [dataclasses.asdict(trunk.shape) for trunk in self.trunks]
        return {
            "as_configured": None if configured is None else configured.to_dict(),
            "best": [proposal.to_dict() for proposal in self.best()],
            "measured": [trunk.name for trunk in self.trunks],
            "families": sorted({trunk.family for trunk in self.trunks}),
            "shapes": [shape for place, shape in enumerate(shapes) if shape not in shapes[:place]],
            "begins": {name: [getattr(shape, name) for shape in begins] for name in ("depth", "width")},
            "latest": self._latest,
        }


def search(plan: LadderPlan, studies: Sequence[StudyRecord]) -> TrunkSearch:
    """Prepare a search with the trunks that studies measured: of the ladder's family, if there are any.

    Raises:
        ValueError: The ladder has no smaller rung to grow from, or no study measured a trunk.
    """
    trunks = measured_trunks(studies)
    own = [trunk for trunk in trunks if trunk.family == plan.config.model.family]
    return TrunkSearch(plan=plan, trunks=tuple(own or trunks))


def _is_within(shape: Shape, measured: Sequence[Shape]) -> bool:
    if not measured:
        return False
    for name in ("first", "last"):
        values = [getattr(one, name) for one in measured]
        if not min(values) - 1e-9 <= getattr(shape, name) <= max(values) + 1e-9:
            return False
    for name in ("depth", "width"):
        values = [getattr(one, name) for one in measured]
        if not min(values) / _NEARLY <= getattr(shape, name) <= max(values) * _NEARLY:
            return False
    return True


def _interpolated(shape: Shape, measured: Sequence[MeasuredTrunk]) -> float:
    # Weighted by the inverse square of the distance; a recipe of the very shape has all the weight.
    distances = [trunk.shape.distance(shape) for trunk in measured]
    same = [trunk.worth for trunk, distance in zip(measured, distances, strict=True) if distance < 1e-6]
    if same:
        return fmean(same)
    weights = [distance**-2 for distance in distances]
    worth = (weight * trunk.worth for weight, trunk in zip(weights, measured, strict=True))
    return sum(worth) / sum(weights)
