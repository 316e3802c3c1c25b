"""How fast each rung trains: by an assumed share of the peak, or by what was measured on the machine at hand."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from hf_progressive.distributed.accelerators import Gpu
from hf_progressive.planning.cluster import Cluster
from hf_progressive.planning.ladder_plan import LadderPlan
from hf_progressive.training.flops import FORWARD_SHARE


@dataclass(frozen=True, kw_only=True)
class MeasuredRung:
    """Real steps of one rung, timed on one device."""

    name: str
    """The rung's name."""

    flops_per_token: float
    """Training FLOPs per token."""

    micro_batch_size: int
    """Sequences per forward pass, as the plan has it."""

    steps: int
    """Steps that were timed, after the warm-up."""

    accumulation_steps: int
    """Micro-batches of a timed step: two stand for the plan's number, since the others are alike."""

    tokens_per_second: float
    """Training tokens per second, in steps of the plan's number of micro-batches."""

    evaluation_tokens_per_second: float
    """Validation tokens per second."""

    peak_bytes: int | None
    """Most memory that was held; None where the device does not count it."""

    predicted_bytes: int
    """What `memory` predicts of it."""

    @property
    def training_flops(self) -> float:
        """FLOPs per second while training."""
        return self.tokens_per_second * self.flops_per_token


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was timed on the machine at hand."""

    device: Gpu
    """The device: one of the accelerators at hand, or the processor."""

    seconds: float
    """The time that each rung was given."""

    rungs: tuple[MeasuredRung, ...]
    """The rungs that were measured; at least one."""

    skipped: dict[str, str]
    """Why the others were not, by name."""

    without: tuple[str, ...] = ()
    """Arguments of the configuration that steps were timed without: those of several processes and of real data."""

    saving_bytes_per_second: float
    """How fast a checkpoint is written, made durable and digested."""

    folder: str
    """Where that was measured."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, and each rung's share of the peak where that is known."""
        value = dataclasses.asdict(self)
        for entry, rung in zip(value["rungs"], self.rungs, strict=True):
            peak = self.device.peak_flops
            entry["mfu"] = None if peak is None else rung.training_flops / peak
        return value


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast one accelerator computes a rung."""

    training: float
    """FLOPs per second of training."""

    forward: float
    """FLOPs per second of forward passes."""

    basis: str
    """`assumed`, `measured` or `extrapolated`."""

    source: str | None = None
    """The measured rung that an extrapolation is from."""

    mfu: float | None = None
    """`training` as a share of the peak; None where that is not known."""


def speeds(plan: LadderPlan, cluster: Cluster, measurement: Measurement | None) -> list[Speed]:
    """Return the speed of every rung.

    A rung that was not measured is taken to compute as many FLOPs per second as the measured one that is nearest in
    FLOPs per token, which is the same MFU. On another kind of accelerator than the measured one, the MFU is kept.

    Raises:
        ValueError: The cluster's accelerators are of another kind than the measured device, whose peak is not known.
    """
    peak = cluster.gpu.peak_flops
    if measurement is None:
        assert peak is not None
        assert cluster.mfu is not None
        rate = peak * cluster.mfu
        return [Speed(training=rate, forward=rate, basis="assumed", mfu=cluster.mfu) for _ in plan.rungs]
    scale = _scale(cluster, measurement)
    found = []
    for rung in plan.rungs:
        wanted = rung.size.flops_per_token
        nearest = min(measurement.rungs, key=lambda other: abs(math.log(other.flops_per_token / wanted)))
        own = nearest.name == rung.name
        training = nearest.training_flops * scale
        found.append(
            Speed(
                training=training,
                forward=nearest.evaluation_tokens_per_second * nearest.flops_per_token * FORWARD_SHARE * scale,
                basis="measured" if own and scale == 1.0 else "extrapolated",
                source=nearest.name,
                mfu=None if peak is None else training / peak,
            )
        )
    return found


def _scale(cluster: Cluster, measurement: Measurement) -> float:
    here, there = measurement.device, cluster.gpu
    if here.name == there.name:
        return 1.0
    if here.peak_flops is None or there.peak_flops is None:
        raise ValueError(
            f"measure: the speed of {here.name} says nothing of the {there.name}, because its peak is not known; leave"
            f" --gpu out to price the machine at hand, or --measure to assume an MFU"
        )
    return there.peak_flops / here.peak_flops
