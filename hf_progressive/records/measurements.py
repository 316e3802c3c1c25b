"""What is measured of a model: its validation curve, its baseline, its speed, and its result on CORE."""

from dataclasses import dataclass

from hf_progressive.records.matching import check_curve
from hf_progressive.records.typed import Amount, Count, Record


@dataclass(frozen=True, kw_only=True)
class CurvePoint(Record):
    """One validation of a training run."""

    step: Count | None = None
    """Optimizer steps before it."""

    tokens: Amount | None = None
    """Tokens trained on before it."""

    flops: Amount
    """FLOPs of the run so far; of a grown rung, those of Fisher and subspace included."""

    loss: float | None = None
    """Validation loss, in nats per token."""

    bits_per_byte: Amount
    """Validation bits per byte."""


@dataclass(frozen=True, kw_only=True)
class Throughput(Record):
    """How fast a rung trained, evaluations and saving left out."""

    tokens_per_second: Amount | None
    """Training tokens per second, over all processes; None of a run that was continued after its last step."""

    mfu: Amount | None
    """Model FLOPs utilisation: the share of the devices' peak; None where that is not known."""

    seconds: dict[str, Amount]
    """Seconds of training, of evaluation and of saving; of a run that was continued, since then."""

    device: str
    """What one process computed on, by its driver's name."""

    processes: Count
    """Processes that trained together."""

    @property
    def rate(self) -> float:
        """Tokens per second, where they are known."""
        assert self.tokens_per_second is not None
        return self.tokens_per_second


@dataclass(frozen=True, kw_only=True)
class Baseline(Record):
    """The same architecture trained from scratch on its full budget."""

    loss: float | None = None
    """Final validation loss, in nats per token."""

    bits_per_byte: Amount
    """Final validation bits per byte."""

    tokens: Count | None = None
    """Tokens trained on."""

    flops: Amount
    """Training FLOPs."""

    learning_rate: Amount | None = None
    """Peak learning rate; None in older records."""

    curve: tuple[CurvePoint, ...]
    """Validations in the order of training."""

    evaluation_flops: Amount | None = None
    """FLOPs of validating while it trained, which `flops` leaves out; None in older records."""

    def __post_init__(self) -> None:
        check_curve(self.curve)
        if not self.flops:
            raise ValueError("flops: a baseline trains for more than 0")


@dataclass(frozen=True, kw_only=True)
class CoreTask(Record):
    """The result on one task of CORE."""

    label: str
    """The task."""

    examples: Count | None = None
    """How many were asked."""

    accuracy: Amount | None = None
    """Share of right answers."""

    standard_error: Amount | None = None
    """Of the accuracy."""

    centred: float
    """Accuracy on a scale where a random guess is 0."""

    centred_standard_error: Amount
    """Of the centred accuracy."""


@dataclass(frozen=True, kw_only=True)
class CoreScore(Record):
    """A result on CORE, or on the tasks of it that had data."""

    name: str
    """What may be claimed: "CORE", or "CORE (18 of 22 tasks)" and the like."""

    score: float
    """Mean centred accuracy."""

    standard_error: Amount
    """Of the score."""

    tasks: tuple[CoreTask, ...]
    """The tasks that had data."""

    @property
    def by_task(self) -> dict[str, tuple[float, float]]:
        """Centred accuracy and its standard error, by task."""
        return {task.label: (task.centred, task.centred_standard_error) for task in self.tasks}
