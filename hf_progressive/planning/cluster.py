"""What a ladder runs on: accelerators, and the cores that tokenize a stream for them."""

from dataclasses import dataclass
from typing import Any

from hf_progressive.config import strict_yaml
from hf_progressive.distributed.accelerators import GPUS, Gpu

TOKENS_PER_CORE_SECOND = 300_000.0
"""Tokens that one core makes of text. Measured on English books, in seconds of the core's time, with holding out and
taking the ids out of the library: .33 M with a vocabulary of 65,536, .38 M with 8,192."""

TOKENS_PER_READER_SECOND = 7_000_000.0
"""Tokens that the one process that reads a stream hands on at the most, however many cores tokenize for it. Measured:
what it does in Python (reading rows of JSON, holding out, taking ids out of the library) takes .14 µs a token."""

CORES_PER_GPU = 8
"""Cores for each accelerator, where nobody says how many a machine has: fewer than clouds give with an H100."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A number of accelerators."""

    gpu: Gpu = GPUS["h100"]
    """The kind of accelerator."""

    count: int = 8
    """How many."""

    mfu: float | None = 0.4
    """Model FLOPs utilisation that is assumed: the share of the peak that a training step reaches, by
    `flops_per_token`'s count; None where speeds are measured."""

    price: float | None = None
    """Dollars per accelerator and hour; None prices nothing."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"gpus: {self.count} is below 1")
        if self.mfu is not None and not 0 < self.mfu <= 1:
            raise ValueError(f"mfu: {self.mfu} is not in (0, 1]; it is a share: 0.4 for 40 %")
        if self.price is not None and not 0 <= self.price < float("inf"):
            raise ValueError(f"price: {self.price} is not a number of dollars of 0 or more")

    @classmethod
    def of(cls, gpu: str, *, count: int, mfu: float | None, price: float | None) -> "Cluster":
        """Build a cluster of accelerators that are named as in `GPUS`."""
        if gpu not in GPUS:
            raise ValueError(f"gpu: {gpu!r} is not in the table; {strict_yaml.nearest(gpu, GPUS)}")
        return cls(gpu=GPUS[gpu], count=count, mfu=mfu, price=price)


@dataclass(frozen=True, kw_only=True)
class DataSupply:
    """How fast a corpus comes, against how fast it is trained on."""

    streaming: bool
    """Whether it is tokenized while it is trained on; otherwise it is there before, and only read."""

    cores: int
    """Cores that tokenize."""

    cores_given: bool
    """Whether that is known, and not assumed."""

    @classmethod
    def of(cls, *, streaming: bool, gpus: int, cores: int | None) -> "DataSupply":
        """Say what tokenizes: the cores of the machine that trains, or, if None, `CORES_PER_GPU` for each accelerator.

        >>> DataSupply.of(streaming=True, gpus=8, cores=12).share(4_500_000)
        0.8
        """
        if cores is not None and cores < 1:
            raise ValueError(f"cores: {cores} is below 1")
        return cls(
            streaming=streaming, cores=CORES_PER_GPU * gpus if cores is None else cores, cores_given=cores is not None
        )

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second that tokenizing ahead of training gives."""
        return min(self.cores * TOKENS_PER_CORE_SECOND, TOKENS_PER_READER_SECOND)

    def share(self, eaten: float | None) -> float | None:
        """Return the share of the time in which accelerators that could eat so many tokens per second have some.

        None where nothing is tokenized meanwhile, or the speed is not known.
        """
        if not self.streaming or not eaten:
            return None
        return min(1.0, self.tokens_per_second / eaten)

    def to_dict(self) -> dict[str, Any]:
        return {
            "streaming": self.streaming,
            "cores": self.cores,
            "cores_given": self.cores_given,
            "tokens_per_core_second": TOKENS_PER_CORE_SECOND,
            "tokens_per_second": self.tokens_per_second if self.streaming else None,
        }
