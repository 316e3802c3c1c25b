"""What a study makes: initial models, fresh or grown, and the models that training runs from them finish.

Names end in a digest of everything that decides the result, ancestors included. A model that two recipes have in
common is thus made once, and a changed configuration never meets an old result.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from hf_progressive.config import GrowthConfig, LadderConfig, PhiConfig, TrainingConfig
from hf_progressive.config.renamed import former_name
from hf_progressive.planning.ladder_plan import RungPlan
from hf_progressive.training.training_run import schedule_steps

_DIGEST_DIGITS = 10
# What changes how a training run is watched, saved or resumed, and not what it computes.
_WITHOUT_EFFECT = (
    *("evaluations", "checkpoints", "keep_stable", "inherited_fraction", "inherited_learning_rate"),
    "learning_rate_by_width",  # the peak is stated beside
)
# Keys that came later, with the value at which older results keep their names.
_ADDED: dict[str, Any] = {"optimizer": "adamw", "muon_learning_rate": None, "trainable": "all"}


def digest(value: Any) -> str:
    """Return ten hexadecimal digits of the SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:_DIGEST_DIGITS]


@dataclass(frozen=True, kw_only=True, eq=False)
class InitialModel:
    """A checkpoint that training begins from: of fresh weights, or grown from a finished model."""

    rung: RungPlan
    """The rung, as the recipe plans it."""

    seed: int
    """The study's seed."""

    draw: int
    """Seed of the entries that are drawn."""

    fingerprint: str
    """The corpus's."""

    ladder: LadderConfig
    """The ladder with a recipe's overrides, of which only a grown model's growth and the estimates of Φ count: recipes
    that have these in common share the model."""

    parent: "FinishedModel | None" = None
    """What it is grown from; None for fresh weights."""

    carry_moments: bool = False
    """Grow Adam's moments too."""

    @cached_property
    def name(self) -> str:
        """Unique name."""
        if self.parent is None:
            config = {k: v for k, v in self.rung.size.config.to_diff_dict().items() if k != "transformers_version"}
            return f"{self.rung.name}-s{self.seed}-fresh-{digest([config, self.draw, self.fingerprint])}"
        phi = dataclasses.asdict(self.phi)
        phi["fisher"] = {key: value for key, value in phi["fisher"].items() if value is not None}
        del phi["subspace"]["side"]  # by which they are used, not made
        estimates = {key: phi[key] for key in ("fisher", "subspace")} if self.estimates_inheritance else None
        terms = [self.phi.ewc_lambda > 0, self.phi.gamma > 0]
        growth = {k: v for k, v in dataclasses.asdict(self.growth).items() if not k.startswith("max_")}
        made_of = [self.parent.name, self.rung.target, growth, self.draw, self.carry_moments, estimates, terms]
        return f"{self.rung.name}-s{self.seed}-grown-{digest(made_of)}"

    @property
    def growth(self) -> GrowthConfig:
        """How it is made from its parent."""
        return self.ladder.growth_of(self.rung.name)

    @property
    def phi(self) -> PhiConfig:
        """The penalty whose estimates are made of its parent."""
        return self.ladder.phi_of(self.rung.name)

    @property
    def estimates_inheritance(self) -> bool:
        """Whether Φ is on, so that its estimates have to be made of the parent."""
        return self.parent is not None and not self.phi.is_off

    @property
    def lineage(self) -> list["FinishedModel"]:
        """The finished models that it comes from, the first rung's first."""
        return [] if self.parent is None else [*self.parent.initial.lineage, self.parent]

    @property
    def init(self) -> str:
        """Where it is, among all tasks' files."""
        return f"{self.name}/init"

    @property
    def estimated_parent(self) -> str:
        """Where its parent is, with the estimates for Φ."""
        return f"{self.name}/parent"

    @property
    def source(self) -> str:
        """The checkpoint that it is grown from: the parent after its decay, or before it where the recipe says so."""
        assert self.parent is not None
        return self.parent.final if not self.parent.decays else f"{self.parent.name}/{self.growth.parent}"


@dataclass(frozen=True, kw_only=True)
class TrunkPlace:
    """Where on a trunk a training run stands, and how its rate rises there."""

    steps_before: int
    """Steps of the trunk before the run's first."""

    rewarm_steps: int | None
    """Steps over which the rate rises again after the growth; None on the first stage, which warms up like a
    baseline."""

    rewarm: Literal["all", "new"]
    """Whose rate rises again: every entry's, or that of new ones alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSetup:
    """One way of training from an initial model, to any length.

    Schedules of all lengths are equal up to the decay of the shortest: warm-up and the course of Φ are shares of the
    baseline's budget, and not of the length.
    """

    initial: InitialModel
    """The initial model, which several recipes may share."""

    training: TrainingConfig
    """Batch, schedule and optimizer."""

    phi: PhiConfig | None
    """The penalty; None for none."""

    learning_rate: float
    """Peak learning rate."""

    cold_steps: int
    """Steps of the baseline's full budget, in this setup's batches."""

    first_block: int
    """The first block of the corpus to read."""

    order: int | None
    """Seed of the order of the data; None for the corpus's own order."""

    trunk: TrunkPlace | None = None
    """Where on a trunk it is; None for baselines and chains."""

    @cached_property
    def name(self) -> str:
        """Unique name."""
        training = dataclasses.asdict(self.training).items()
        settings = {
            former_name(key): value  # as older results were named
            for key, value in training
            if key not in _WITHOUT_EFFECT and not (key in _ADDED and value == _ADDED[key])
            if key != "trainable" or self.initial.parent is not None  # a baseline trains all
        }
        phi = self.phi
        penalty = None if phi is None else [phi.ewc_lambda, phi.gamma, phi.schedule, phi.until, *phi.departures]
        course = [self.learning_rate, self.warmup_steps, self.cold_steps, self.first_block, self.order, penalty]
        made_of = [self.initial.name, settings, *course]
        if self.trunk is not None:
            made_of.append(dataclasses.asdict(self.trunk))
        return f"{self.initial.rung.name}-s{self.initial.seed}-{digest(made_of)}"

    @property
    def steps_before(self) -> int:
        """Steps of the trunk before its first; 0 outside of trunks."""
        return 0 if self.trunk is None else self.trunk.steps_before

    @property
    def warmup_steps(self) -> int:
        """Steps over which the rate rises at the beginning."""
        if self.trunk is None or self.trunk.rewarm_steps is None:
            return schedule_steps(self.training, self.cold_steps)[0]
        return self.trunk.rewarm_steps

    @property
    def rewarms_new(self) -> bool:
        """Whether it rises so for new entries alone."""
        return self.trunk is not None and self.trunk.rewarm_steps is not None and self.trunk.rewarm == "new"

    def finished(self, fraction: float) -> "FinishedModel":
        """Return the model that is finished at a share of the baseline's full budget, its trunk's steps included."""
        return FinishedModel(setup=self, fraction=fraction)

    def stage(self, until: float) -> "FinishedModel":
        """Return the model as it is on the trunk at a share of the end's full budget, without a decay."""
        return FinishedModel(setup=self, fraction=until, decays=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class FinishedModel:
    """A model at the end of its training run, decay included; or a stage of a trunk, which has none."""

    setup: TrainingSetup
    """How it trains."""

    fraction: float
    """Share of the baseline's full budget that it trains for, its trunk's steps before it included."""

    decays: bool = True
    """Whether its rate falls at the end."""

    decay: int | None = None
    """Steps of its decay, of a trunk's member; None takes the share that its training states."""

    @cached_property
    def name(self) -> str:
        """Unique name."""
        kind = "cold" if self.initial.parent is None else "child"
        made_of = [self.setup.name, self.steps]
        if not self.decays:
            kind, made_of = "trunk", [*made_of, "constant"]
        elif self.decay is not None:
            kind, made_of = "member", [*made_of, self.decay]
        return f"{self.initial.rung.name}-s{self.initial.seed}-{kind}-f{self.fraction:g}-{digest(made_of)}"

    @property
    def initial(self) -> InitialModel:
        """The initial model."""
        return self.setup.initial

    @property
    def steps(self) -> int:
        """Optimizer steps from the initial model to the end."""
        return max(1, self.steps_on_trunk - self.setup.steps_before)

    @property
    def steps_on_trunk(self) -> int:
        """Optimizer steps from the fresh weights of its trunk to its end; outside of trunks, as `steps`."""
        return round(self.fraction * self.setup.cold_steps)

    @property
    def tokens(self) -> int:
        """Tokens that it trains on."""
        return self.steps * self.setup.training.batch_tokens

    @property
    def flops(self) -> float:
        """Training FLOPs of all its steps."""
        return float(self.tokens * self.initial.rung.size.flops_per_token)

    @property
    def decay_steps(self) -> int:
        """Steps of its decay: in a trunk, of as many as its baseline's of that budget, if it has them."""
        if not self.decays:
            return 0
        if self.decay is not None:
            return self.decay
        steps, warmup = self.steps, self.setup.warmup_steps
        of_baseline = schedule_steps(self.setup.training, self.setup.steps_before + steps, warmup)[1]
        return min(of_baseline, max(0, steps - warmup))

    @property
    def decay_begins(self) -> int:
        """The last step before its decay."""
        return self.steps - self.decay_steps

    @property
    def constant_until(self) -> int:
        """The last step up to which its schedule is that of every longer run of its setup."""
        return self.decay_begins if self.decays else self.steps

    @property
    def shared_steps(self) -> int:
        """The last step from which it can branch off a longer run of its setup, which it equals until its decay.

        A stage leaves its last one to be taken, so that it is a training run like any other.
        """
        return self.decay_begins if self.decays else self.steps - 1

    @property
    def final(self) -> str:
        """Where its weights are, among all tasks' files."""
        return f"{self.name}/final"

    @property
    def stable(self) -> str:
        """Where the weights from before its decay are."""
        return f"{self.name}/stable"

    def checkpoint(self, step: int) -> str:
        """Return where its training run leaves a checkpoint, among all tasks' files."""
        return f"{self.name}/checkpoints/checkpoint-{step}"


@dataclass(frozen=True, kw_only=True, eq=False)
class AveragedModel:
    """The average of weights along a trunk's stage: a member that needs no training of its own."""

    stage: FinishedModel
    """The stage."""

    steps: tuple[int, ...]
    """Steps of the stage after which the weights are taken."""

    @cached_property
    def name(self) -> str:
        """Unique name."""
        initial = self.stage.initial
        made_of = [self.stage.setup.name, self.steps]
        return f"{initial.rung.name}-s{initial.seed}-average-f{self.stage.fraction:g}-{digest(made_of)}"

    @property
    def final(self) -> str:
        """Where its weights are, among all tasks' files."""
        return f"{self.name}/final"
