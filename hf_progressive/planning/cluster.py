"""A number of accelerators: what FLOPs take on them, in hours and dollars."""

from dataclasses import dataclass

from hf_progressive.config import strict_yaml
from hf_progressive.distributed.accelerators import GPUS, Gpu


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a ladder runs on."""

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
            raise ValueError(f"mfu: {self.mfu} is not in (0, 1]")
        if self.price is not None and not 0 <= self.price < float("inf"):
            raise ValueError(f"price: {self.price} is not a number of dollars of 0 or more")

    @classmethod
    def of(cls, gpu: str, *, count: int, mfu: float | None, price: float | None) -> "Cluster":
        """Build a cluster from the name of its accelerators.

        Args:
            gpu: A name in `GPUS`.
            count: How many.
            mfu: Model FLOPs utilisation; None where speeds are measured.
            price: Dollars per accelerator and hour.

        Returns:
            The cluster.

        Raises:
            ValueError: The name is unknown, or a number out of its range.
        """
        if gpu not in GPUS:
            raise ValueError(f"gpu: {gpu!r} is not in the table; {strict_yaml.nearest(gpu, GPUS)}")
        return cls(gpu=GPUS[gpu], count=count, mfu=mfu, price=price)

    def hours(self, flops: float) -> float:
        """Return the wall-clock hours that FLOPs take.

        Args:
            flops: Training FLOPs.

        Returns:
            Hours.

        >>> round(Cluster(count=8, mfu=0.4).hours(46e18), 1)
        4.0
        """
        assert self.gpu.peak_flops is not None
        assert self.mfu is not None
        return flops / (self.count * self.gpu.peak_flops * self.mfu) / 3600

    def dollars(self, flops: float) -> float | None:
        """Return what FLOPs cost.

        Args:
            flops: Training FLOPs.

        Returns:
            Dollars; None without a price.
        """
        return None if self.price is None else self.hours(flops) * self.count * self.price
