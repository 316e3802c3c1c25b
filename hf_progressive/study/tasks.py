"""What a study trains, as a graph: starts, groups of runs that share a start and a schedule, and runs.

A *start* is an initial checkpoint, fresh or grown from a finished run. A *group* is one way of training from a start;
its *runs* differ in their number of steps alone. The longest one is the trunk: it leaves a checkpoint where the
decay of each shorter one begins, and the shorter ones go on from there. Since all of a group's schedules are equal
up to that step, a run that branches off ends with the weights it would have had by itself.

Names end in a digest of everything that decides the result, ancestors included. A task that two recipes have in common
is thus one task, and a changed configuration never meets an old result.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from hf_progressive.config import LadderConfig, PhiConfig, TrainingConfig
from hf_progressive.planning.ladder_plan import RungPlan
from hf_progressive.training.training_run import schedule_steps

_DIGEST_DIGITS = 10
# What changes how a run is watched, saved or resumed, and not what it computes.
_WITHOUT_EFFECT = ("evaluations", "checkpoints", "keep_stable", "inherited_fraction", "inherited_learning_rate")


def digest(value: Any) -> str:
    """Digest plain values.

    Args:
        value: What JSON can hold.

    Returns:
        Ten hexadecimal digits of a SHA-256.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:_DIGEST_DIGITS]


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """An initial checkpoint."""

    name: str
    """Unique name of the task."""

    rung: RungPlan
    """The rung, as the recipe plans it."""

    seed: int
    """The study's seed."""

    draw: int
    """Seed of the entries that are drawn."""

    parent: "Run | None" = None
    """The finished run to grow from; None for fresh weights."""

    ladder: LadderConfig | None = None
    """A ladder with a recipe's overrides, of which the growth and the estimates of Φ count, and no more: recipes that
    have these in common share the start; None for fresh weights."""

    carry_moments: bool = False
    """Grow Adam's moments too."""

    groups: list["Group"] = field(default_factory=list)
    """What is trained from it."""

    @property
    def lineage(self) -> list["Run"]:
        """The runs that it comes from, the first rung's first."""
        return [] if self.parent is None else [*self.parent.start.lineage, self.parent]

    @property
    def estimates_inheritance(self) -> bool:
        """Whether Φ is on, so that its estimates have to be made of the parent."""
        return self.ladder is not None and (self.ladder.phi.ewc_lambda > 0 or self.ladder.phi.gamma > 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """One way of training from a start, to several lengths."""

    name: str
    """Unique name."""

    start: Start
    """The initial checkpoint."""

    training: TrainingConfig
    """Batch, schedule and optimizer."""

    phi: PhiConfig | None
    """The penalty; None for none."""

    learning_rate: float
    """Peak learning rate."""

    cold_steps: int
    """Steps of the baseline's full budget, in this group's batches."""

    warmup_steps: int
    """Steps of warm-up: a share of the cold budget, the same for every length."""

    first_block: int
    """The first block of the corpus that its runs read."""

    runs: list["Run"] = field(default_factory=list)
    """Its runs."""

    @property
    def trunk(self) -> "Run":
        """The longest run, from whose checkpoints the others go on."""
        return max(self.runs, key=lambda run: run.steps)


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One finished model."""

    name: str
    """Unique name of the task."""

    group: Group
    """How it trains."""

    fraction: float
    """Share of the cold budget that it trains for."""

    steps: int
    """Optimizer steps from its start to its end."""

    @property
    def start(self) -> Start:
        """The initial checkpoint."""
        return self.group.start

    @property
    def tokens(self) -> int:
        """Tokens that it trains on, the shared ones included."""
        return self.steps * self.group.training.batch_tokens

    @property
    def flops(self) -> float:
        """Training FLOPs of all its steps."""
        return float(self.tokens * self.start.rung.size.flops_per_token)

    @property
    def decay_steps(self) -> int:
        """Steps of its decay."""
        return schedule_steps(self.group.training, self.steps, self.group.warmup_steps)[1]

    @property
    def branch_step(self) -> int:
        """The last step before its decay, up to which it equals every longer run of its group."""
        return self.steps - self.decay_steps

    @property
    def is_trunk(self) -> bool:
        """Whether it is the longest of its group."""
        return self is self.group.trunk


Task = Start | Run
"""What one process does at a time."""


class TaskGraph:
    """Builds starts, groups and runs, each once.

    Args:
        fingerprint: The corpus's.
        shuffle_seed: Seed of the corpus's order at study seed 0; None keeps one order for all seeds.
    """

    def __init__(self, fingerprint: str, shuffle_seed: int | None) -> None:
        self.starts: dict[str, Start] = {}
        self.groups: dict[str, Group] = {}
        self.runs: dict[str, Run] = {}
        self._fingerprint = fingerprint
        self._shuffle_seed = shuffle_seed

    def order_of(self, seed: int) -> int | None:
        """Return the seed of the order of the data.

        Args:
            seed: The study's seed.

        Returns:
            A seed; None for the corpus's own order.
        """
        return None if self._shuffle_seed is None else self._shuffle_seed + seed

    def fresh(self, rung: RungPlan, seed: int, draw: int) -> Start:
        """Add fresh weights.

        Args:
            rung: The rung.
            seed: The study's seed.
            draw: Seed of the weights.

        Returns:
            The start.
        """
        config = {k: v for k, v in rung.size.config.to_diff_dict().items() if k != "transformers_version"}
        name = f"{rung.name}-s{seed}-fresh-{digest([config, draw, self._fingerprint])}"
        return self.starts.setdefault(name, Start(name=name, rung=rung, seed=seed, draw=draw))

    def grown(self, rung: RungPlan, parent: Run, draw: int, ladder: LadderConfig, carry_moments: bool) -> Start:
        """Add a checkpoint grown from a finished run.

        Args:
            rung: The rung, as the recipe plans it.
            parent: The finished run.
            draw: Seed of new entries.
            ladder: The ladder with the recipe's overrides.
            carry_moments: Grow Adam's moments too.

        Returns:
            The start.
        """
        phi = dataclasses.asdict(ladder.phi)
        estimates = {key: phi[key] for key in ("fisher", "subspace")}
        terms = [ladder.phi.ewc_lambda > 0, ladder.phi.gamma > 0]
        growth = {k: v for k, v in dataclasses.asdict(ladder.growth).items() if not k.startswith("max_")}
        made_of = [parent.name, rung.target, growth, draw, carry_moments, estimates if any(terms) else None, terms]
        name = f"{rung.name}-s{parent.start.seed}-grown-{digest(made_of)}"
        start = Start(
            name=name,
            rung=rung,
            seed=parent.start.seed,
            draw=draw,
            parent=parent,
            ladder=ladder,
            carry_moments=carry_moments,
        )
        return self.starts.setdefault(name, start)

    def group(
        self,
        start: Start,
        training: TrainingConfig,
        *,
        phi: PhiConfig | None,
        cold_steps: int,
        learning_rate: float,
        first_block: int,
    ) -> Group:
        """Add a way of training.

        Args:
            start: The initial checkpoint, which several recipes may share.
            training: Batch, schedule and optimizer.
            phi: The penalty; None for none.
            cold_steps: Steps of the baseline's full budget in these batches.
            learning_rate: Peak learning rate.
            first_block: The first block to read.

        Returns:
            The group.
        """
        warmup = schedule_steps(training, cold_steps)[0]
        settings = {k: v for k, v in dataclasses.asdict(training).items() if k not in _WITHOUT_EFFECT}
        penalty = None if phi is None else [phi.ewc_lambda, phi.gamma, phi.schedule, phi.until]
        order = self.order_of(start.seed)
        made_of = [start.name, settings, learning_rate, warmup, cold_steps, first_block, order, penalty]
        name = f"{start.rung.name}-s{start.seed}-{digest(made_of)}"
        if name not in self.groups:
            self.groups[name] = Group(
                name=name,
                start=start,
                training=training,
                phi=phi,
                learning_rate=learning_rate,
                cold_steps=cold_steps,
                warmup_steps=warmup,
                first_block=first_block,
            )
            start.groups.append(self.groups[name])
        return self.groups[name]

    def run(self, group: Group, fraction: float) -> Run:
        """Add a finished model.

        Args:
            group: How it trains.
            fraction: Share of the cold budget.

        Returns:
            The run.
        """
        start, steps = group.start, max(1, round(fraction * group.cold_steps))
        kind = "cold" if start.parent is None else "child"
        name = f"{start.rung.name}-s{start.seed}-{kind}-f{fraction:g}-{digest([group.name, steps])}"
        if name not in self.runs:
            self.runs[name] = Run(name=name, group=group, fraction=fraction, steps=steps)
            group.runs.append(self.runs[name])
        return self.runs[name]
