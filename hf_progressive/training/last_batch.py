"""The last batch of an evaluation on several processes, each of whose sequences counts once.

Where sequences do not fill the last batch, Accelerate fills it up with the first ones again, so that all processes
read as many. Trainer then takes a process's mean, repetitions included, for the loss of each sequence that is none.
"""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LastBatch:
    """What one process reads of a last batch that is filled up."""

    accelerator: Accelerator
    """The processes."""

    inputs: dict[str, Tensor]
    """This process's sequences without repetitions; where it has no others, those, for engines whose processes must
    all compute."""

    rows: int
    """How many of them are no repetitions."""

    @classmethod
    def of(cls, accelerator: Accelerator, inputs: dict[str, Any]) -> "LastBatch | None":
        """Take the repetitions out of a micro-batch.

        Args:
            accelerator: The processes.
            inputs: This process's micro-batch, which a data loader of the accelerator has just given out.

        Returns:
            The batch; None where it has no repetitions, or holds anything but tensors of equally many rows.
        """
        state = accelerator.gradient_state
        if accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return None
        if getattr(accelerator, "parallelism_config", None) is not None:  # several processes may read the same
            return None
        if not all(isinstance(value, Tensor) and value.ndim for value in inputs.values()):
            return None
        sizes = {len(value) for value in inputs.values()}
        if len(sizes) != 1:
            return None
        size = sizes.pop()
        rows = min(max(state.remainder - accelerator.process_index * size, 0), size)
        own = {name: value[: rows or size] for name, value in inputs.items()}
        return cls(accelerator=accelerator, inputs=own, rows=rows)

    def mean(self, loss: Tensor) -> Tensor:
        """Average a loss over the sequences of all processes; every one must call it.

        Args:
            loss: The mean over this process's own.

        Returns:
            The mean, the same on every process.
        """
        rows = torch.full_like(loss, self.rows)
        sums: Tensor = self.accelerator.reduce(torch.stack([loss * rows, rows]), reduction="sum")
        return sums[0] / sums[1]
