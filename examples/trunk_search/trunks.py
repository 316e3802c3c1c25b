"""A trunk, as data: its sizes, how it grows and is trained; and a group of models that share it."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from architectures import CONTEXT, Architecture, Family

WARMUP_FRACTION = 0.02
START_STEPS = 60  # what compiling, warming up and recording a stage costs, in steps
FIXED_LAYERS, FIXED_WIDTH = 1.5, 30  # of a step's time: what no layer, and no channel, can be charged with

Width = Literal["exact", "split", "scaled"]
Depth = Literal["insert", "llama_pro", "stack", "interleave", "random"]


class Stage(NamedTuple):
    """A size, and until when the trunk has it."""

    until: float
    """Share of the last stage's tokens; 1 for the last stage."""

    layers: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """Everything but the seed and the peak rate. A trunk of one stage is a run from scratch."""

    family: Family
    stages: tuple[Stage, ...]

    tokens_per_parameter: float = 12.0
    """Of the last stage."""

    batch: int = 8
    """Sequences per step."""

    head_dim: int = 8

    decay_fraction: float = 0.4
    """A model finished at a share f of the tokens falls linearly to 0 over the last decay_fraction · f of them."""

    width: Width = "exact"
    """`exact` and `split` as the package's methods of these names; `scaled` draws every entry without a parent at
    `new_scale` times its matrix's RMS and rescales the norms for it, so that the function changes."""

    depth: Depth = "insert"
    """The package's depth rules; `random` puts new layers on top whose matrices are drawn as from scratch."""

    moments: Literal["fresh", "grown"] = "fresh"
    """Adam's state after a growth; grown, new entries begin with first moments of 0 and the tensor's mean second."""

    rewarm: Literal["all", "new"] = "all"
    """Whose rate rises again after a growth."""

    rewarm_fraction: float = 0.01
    """Share of the last stage's steps over which it does."""

    new_scale: float = 1.0
    """Of `width: scaled`."""

    new_rate: float = 1.0
    """Factor of the rate of new entries, for a while."""

    new_rate_fraction: float = 0.1
    """That while, as a share of the last stage's steps."""

    learning_rate_by_depth: float = 0.0
    """A stage's rate is the peak times (its layers / the last stage's) to this power."""

    def __post_init__(self) -> None:
        shares = [stage.until for stage in self.stages]
        if not shares or shares[-1] != 1 or any(a >= b for a, b in zip([0.0, *shares], shares, strict=False)):
            raise ValueError(f"stages: the shares {shares} must rise from above 0 to 1")

    @property
    def from_scratch(self) -> bool:
        """Whether it never grows."""
        return len(self.stages) == 1

    def architecture(self, stage: int = -1) -> Architecture:
        """Return the size of a stage, by default the last."""
        _, layers, width = self.stages[stage]
        return Architecture(family=self.family, layers=layers, width=width, head_dim=self.head_dim)

    @property
    def step_tokens(self) -> int:
        return self.batch * CONTEXT

    @property
    def steps(self) -> int:
        """The last stage's full budget in steps."""
        return max(4, round(self.tokens_per_parameter * self.architecture().parameters / self.step_tokens))

    @property
    def full_flops(self) -> float:
        """FLOPs of the last stage's full budget from scratch."""
        return float(self.architecture().flops_per_token * self.steps * self.step_tokens)

    @property
    def separate_rates(self) -> bool:
        """Whether new entries have a rate of their own for a while."""
        return self.rewarm == "new" or self.new_rate != 1

    @property
    def baseline(self) -> "Trunk":
        """The run from scratch that it is compared with."""
        return Trunk(
            family=self.family,
            stages=self.stages[-1:],
            tokens_per_parameter=self.tokens_per_parameter,
            batch=self.batch,
            head_dim=self.head_dim,
            decay_fraction=self.decay_fraction,
        )

    @property
    def caption(self) -> str:
        """The sizes, and what is not as it usually is."""
        sizes = [
            f"{layers}×{width}" + ("" if until == 1 else f" until {until:g}".replace("0.", "."))
            for until, layers, width in self.stages
        ]
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        shown = list(usual)[list(usual).index("width") :]
        chosen = {name: value for name in shown if (value := getattr(self, name)) != usual[name]}
        choices = [
            f"{name} {value if isinstance(value, str) else format(value, 'g')}" for name, value in chosen.items()
        ]
        return "; ".join([", ".join(sizes), *choices])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self) | {"stages": [list(stage) for stage in self.stages]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Trunk":
        """Return the trunk that `to_dict` gave; a key that it does not know is a TypeError."""
        return cls(**values | {"stages": tuple(Stage(*stage) for stage in values["stages"])})


@dataclass(frozen=True, kw_only=True)
class Group:
    """Models that differ in seed and peak rate alone, trained side by side."""

    trunk: Trunk
    rates: tuple[float, ...]
    seeds: tuple[int, ...]

    fractions: tuple[float, ...] = (1.0,)
    """At which shares of the budget models are finished, each a branch with its own decay; the last one is the end."""

    def __post_init__(self) -> None:
        grown = 0.0 if self.trunk.from_scratch else self.trunk.stages[-2].until
        late = [share for share in self.fractions[:-1] if share * (1 - self.trunk.decay_fraction) < grown]
        if late or list(self.fractions) != sorted(set(self.fractions)):
            raise ValueError(f"fractions: {self.fractions} must rise, and none but the last decay before {grown:g}")

    @property
    def models(self) -> list[tuple[int, float]]:
        """(seed, peak rate) of every model."""
        return [(seed, rate) for rate in self.rates for seed in self.seeds]

    def end(self, fraction: float) -> int:
        """Return the step after which a share of the budget is spent."""
        return round(fraction * self.trunk.steps)

    def decay_steps(self, fraction: float) -> int:
        return max(1, round(self.trunk.decay_fraction * self.end(fraction)))

    def shortened(self, share: float) -> "Group":
        """Return the group on a share of its tokens."""
        if share == 1:
            return self
        tokens = self.trunk.tokens_per_parameter * share
        return dataclasses.replace(self, trunk=dataclasses.replace(self.trunk, tokens_per_parameter=tokens))

    @property
    def work(self) -> float:
        """What it takes, in a unit that is about the same time for every group on one machine."""
        total, start = 0.0, 0
        tokens = len(self.models) * self.trunk.step_tokens
        for index, (until, layers, width) in enumerate(self.trunk.stages):
            steps = self.end(until) - start
            if index == len(self.trunk.stages) - 1:
                begins = [self.end(share) - self.decay_steps(share) for share in self.fractions]
                steps = max(0, max(begins) - start) + sum(self.decay_steps(share) for share in self.fractions)
            total += (steps + START_STEPS) * (layers + FIXED_LAYERS) * (width + FIXED_WIDTH) * tokens
            start = self.end(until)
        return total
