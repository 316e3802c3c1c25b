"""The mean of Ω, by which the proximal step divides it."""

from collections.abc import Container, Mapping

from torch import Tensor

from hf_progressive.distributed.working_dtype import summing_dtype


class FisherMean:
    """The mean of the entries above 0 of tensors that are added one by one, in float64.

    Entries at 0, such as those that a grown model's parent did not have, restrain nothing and do not count: growth
    does not change what λ means.

    >>> import torch
    >>> mean = FisherMean()
    >>> mean.add(torch.tensor([0.0, 1.0, 2.0])), mean.add(torch.tensor([[3.0]])), mean.value()
    (None, None, 2.0)
    """

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, fisher: Tensor) -> None:
        """Add the entries of one tensor."""
        self._sum += fisher.detach().sum(dtype=summing_dtype(fisher.device)).item()
        self._count += int(fisher.detach().count_nonzero())

    def add_all(self, fisher: Mapping[str, Tensor], *, but: Container[str]) -> None:
        """Add all tensors of a mapping but some."""
        for name in fisher:
            if name not in but:
                self.add(fisher[name])

    def value(self) -> float:
        """Return the mean, 0 where no entry is above 0."""
        return self._sum / self._count if self._count else 0.0
