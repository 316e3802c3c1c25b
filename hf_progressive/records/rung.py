"""`rung.json`: what is known of one finished rung."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hf_progressive.records.from_parent import Estimates, GrowthRecord, PenaltyRecord
from hf_progressive.records.matching import check_curve, flops_to_match, last_model_cost, saving, transfer_efficiency
from hf_progressive.records.measurements import Baseline, CoreScore, CurvePoint, Throughput
from hf_progressive.records.stages import TrunkRecord
from hf_progressive.records.typed import FORMAT, Amount, Count, Record

LAYER_FIELDS, WIDTH_FIELDS = ("n_layer", "num_hidden_layers"), ("n_embd", "hidden_size")
"""What the families call their number of layers and their width."""


@dataclass(frozen=True, kw_only=True)
class DataUse(Record):
    """Which part of the corpus a rung trained on."""

    source: str
    """The corpus; `unknown` for a model of which no record tells."""

    first_block: Count
    """The rung's first block, counted over all rungs."""

    blocks: Count
    """Blocks that it read."""

    first_epoch: Count
    """Epoch of its first block, from 0."""

    last_epoch: Count = 0
    """Epoch of its last block, from 0."""

    repeats_from_token: Count | None
    """The rung's token from which on it trained on blocks that it or an earlier rung had read; None if on none."""

    block_tokens: Count | None = None
    """Tokens of a block."""

    corpus_blocks: Count | None = None
    """Blocks of the corpus; None for a stream, whose end is not known."""

    shuffle_seed: int | None = None
    """Seed of the blocks' order; None where they are not shuffled."""

    fingerprint: str | None = None
    """Digest of tokenizer and blocks."""


@dataclass(frozen=True, kw_only=True)
class RungFlops(Record):
    """FLOPs of a rung, by what they were spent on."""

    per_token: Amount
    """Training FLOPs per token."""

    train: Amount
    """Of its own training; of a model trained elsewhere, of all that is known to have gone into it."""

    fisher: Amount
    """Of estimating its parent's Fisher information."""

    subspace: Amount
    """Of learning its parent's subspace."""

    inherited: Amount = 0.0
    """Of all that went into its parent, ancestors included."""

    evaluation: Amount | None = None
    """Of validating while it trained, which no figure of efficiency counts; None in older records."""

    branch: Amount = 0.0
    """The part of `train` that only finished this member of a trunk, its decay, and that no later rung inherits."""

    @property
    def spent(self) -> float:
        """FLOPs spent on the rung itself: training, Fisher and subspace."""
        return self.train + self.fisher + self.subspace

    @property
    def lineage(self) -> float:
        """All FLOPs that went into its weights: its own and its ancestors'."""
        return float(self.spent + self.inherited)

    @property
    def passed_on(self) -> float:
        """All FLOPs that went into the weights that its child is grown from: `lineage`, but of a trunk no branch."""
        return self.lineage - self.branch


@dataclass(frozen=True, kw_only=True)
class RungParameters(Record):
    """A rung's parameters, tied ones counted once."""

    total: Count
    """All of them."""

    non_embedding: Count
    """Without the embeddings."""

    scaling: Count
    """Those that nanochat's scaling counts: the matrices and the head."""


@dataclass(frozen=True, kw_only=True)
class OriginRecord(Record):
    """The model trained elsewhere that a ladder began with."""

    name: str
    """Its Hub name, or that of the rung or folder."""

    commit: str | None
    """The commit on the Hub."""

    rung: str | None = None
    """The rung's name in its own ladder; None for a checkpoint that no ladder trained."""

    tokens: Count = 0
    """Tokens it was trained on; 0 where that is not recorded."""

    bits_per_byte: Amount | None = None
    """What its own record says; None without one."""

    flops: Amount
    """All FLOPs that went into it, as far as they are recorded."""

    is_complete: bool
    """Whether they all are."""


_TIMES = ("seconds", "evaluation_seconds", "throughput")


@dataclass(frozen=True, kw_only=True)
class RungRecord(Record):
    """One trained model of a ladder. FLOPs are the rung's own unless the key says `inherited`."""

    format: Literal[1] = FORMAT
    """The layout's version."""

    index: Count
    """Place in the ladder, from 0."""

    name: str
    """The rung's name, which is its folder's too."""

    parent: str | None
    """The rung it was grown from; None for the first, which was trained from scratch or elsewhere."""

    origin: OriginRecord | None = None
    """The model trained elsewhere that it is; None for a rung that was trained here."""

    family: str = ""
    """Its `model_type`."""

    config: dict[str, Any]
    """The model's configuration, as in its config.json."""

    parameters: RungParameters
    """Its parameters."""

    tokens: Count
    """Tokens trained on; 0 where that is not recorded."""

    cold_tokens: Count
    """Tokens of a full budget from scratch; 0 where that is not known."""

    tokens_per_parameter: Amount
    """Tokens trained on per parameter of the budget."""

    learning_rate: Amount | None = None
    """Peak learning rate; None in older records, and for a rung that was trained elsewhere."""

    data: DataUse
    """What it trained on."""

    flops: RungFlops
    """FLOPs by what they were spent on."""

    lineage_complete: bool = True
    """Whether all FLOPs that went into it and its ancestors are recorded."""

    bits_per_byte: Amount
    """Final validation bits per byte."""

    loss: float | None = None
    """Final validation loss, in nats per token."""

    core: CoreScore | None = None
    """Its result on CORE; None if it was not evaluated."""

    curve: tuple[CurvePoint, ...]
    """Validations in the order of training."""

    training_log: tuple[dict[str, float | None], ...] = ()
    """Logged steps: `step` and whatever the trainer logged there; None for what was not finite."""

    computed_in: dict[str, Any] = field(default_factory=dict)
    """Precision, compiled or not, TF32 or not, and kind of attention."""

    cold: Baseline | None
    """Its baseline; None if none was trained."""

    flops_to_match: Amount | None
    """Own FLOPs at which the curve first reaches the baseline's final bits per byte; None if it does not."""

    gap_bits_per_byte: float | None
    """Final bits per byte less the baseline's: negative if the rung ended better."""

    saving: float | None
    """1 − flops_to_match / the baseline's FLOPs."""

    eta: float | None
    """Transfer efficiency (see `matching.transfer_efficiency`); None where it is not known what went into the
    parent."""

    eta_ceiling: Amount | None = None
    """C_scratch / C_lineage, the most that η could be: had the rung matched without any FLOPs of its own. None where
    there is no η, and in older records."""

    last_model_cost: Amount | None = None
    """(inherited + flops_to_match) / the baseline's FLOPs: what the rung costs with all that it inherits, over what it
    costs from scratch. None where there is no η, and in older records."""

    c_parent_over_c_cold: Amount | None
    """The parent's full budget from scratch over the rung's own, in FLOPs."""

    cold_flops: Amount | None = None
    """FLOPs of the full budget from scratch, as planned; None where that is not known (see `cold_cost`)."""

    max_abs_logit_diff: Amount | None
    """Largest |Δlogit| between the parent and the grown, untrained rung."""

    max_abs_logit: Amount | None
    """Largest |logit| in that comparison."""

    growth: GrowthRecord | None = None
    """How it was grown; None for the first rung."""

    trunk: TrunkRecord | None = None
    """Its part of the trunk, and how it was finished; None in a chain, and in older records."""

    estimates: Estimates = field(default_factory=Estimates)
    """What was estimated of it for its successor."""

    phi: PenaltyRecord | None
    """The inheritance penalty; None without one."""

    throughput: Throughput | None = None
    """How fast it trained; None in older records, and for a rung that was trained elsewhere."""

    seconds: dict[str, Amount] = field(default_factory=dict)
    """Wall-clock seconds by step of the work."""

    environment: dict[str, Any] = field(default_factory=dict)
    """Versions and machine."""

    def __post_init__(self) -> None:
        check_curve(self.curve)

    @property
    def layers(self) -> int | None:
        """Layers; None where the configuration does not tell."""
        return self._size(LAYER_FIELDS)

    @property
    def width(self) -> int | None:
        """Width of the residual stream; None where the configuration does not tell."""
        return self._size(WIDTH_FIELDS)

    def _size(self, names: Sequence[str]) -> int | None:
        return next((self.config[name] for name in names if isinstance(self.config.get(name), int)), None)

    @property
    def grown(self) -> bool:
        """Whether the rung has a parent."""
        return self.parent is not None

    @property
    def lineage(self) -> str:
        """The rung's name, with its parent's where it has one."""
        return f"{self.parent} → {self.name}" if self.grown else self.name

    @property
    def speed(self) -> Throughput | None:
        """How fast it trained; None where no rate was measured."""
        return self.throughput if self.throughput and self.throughput.tokens_per_second is not None else None

    @property
    def cold_cost(self) -> float:
        """FLOPs from scratch on the full budget: the baseline's, the first rung's own, or as planned; 0 if unknown.

        A trunk may train its first rung on more than that budget, of which the rest would be no cost from scratch.
        """
        if self.cold is not None:
            return self.cold.flops
        budget = self.cold_tokens * self.flops.per_token
        if self.grown or self.origin is not None:
            return budget
        return self.flops.train if self.trunk is None else min(self.flops.train, budget)

    @property
    def cold_is_planned(self) -> bool:
        """Whether `cold_cost` is a plan, because no baseline was trained."""
        if self.origin is not None:
            return self.cold_is_known and not math.isclose(self.flops.train, self.cold_cost)
        return self.cold is None and (self.grown or self.cold_cost < self.flops.train)

    @property
    def cold_is_known(self) -> bool:
        """Whether `cold_cost` is known; it is not of a model of which no record tells the budget."""
        return self.origin is None or self.cold_tokens > 0

    def without_times(self) -> dict[str, Any]:
        """Return the record as plain values but for what a clock said: what an equal run records, and is published."""
        values = self.to_dict()
        for part in (values, values["cold"] or {}):
            for key in _TIMES:
                part.pop(key, None)
        return values

    def with_baseline(self, cold: Baseline, parent: "RungRecord") -> "RungRecord":
        """Return the record with its baseline in it, and what inheritance saved.

        What was saved stays None where the rung did not reach its baseline's final bits per byte; `eta`, its ceiling
        and the last-model cost do too where what went into the parent is not known.
        """
        found = flops_to_match(self.curve, cold.bits_per_byte)
        lineage = parent.flops.passed_on
        share = eta = ceiling = cost = None
        if found is not None:
            share = saving(child_flops=found, cold_flops=cold.flops)
        if found is not None and parent.lineage_complete:
            eta = transfer_efficiency(child_flops=found, cold_flops=cold.flops, lineage_flops=lineage)
            cost = last_model_cost(child_flops=found, cold_flops=cold.flops, lineage_flops=lineage)
            ceiling = cold.flops / lineage
        return dataclasses.replace(
            self,
            cold=cold,
            gap_bits_per_byte=self.bits_per_byte - cold.bits_per_byte,
            flops_to_match=found,
            saving=share,
            eta=eta,
            eta_ceiling=ceiling,
            last_model_cost=cost,
        )
