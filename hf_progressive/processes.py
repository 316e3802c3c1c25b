"""The processes of a launch, whatever they compute on."""

import torch
from accelerate import PartialState


def current_processes() -> PartialState:
    """Return the state of this launch's processes.

    Without an accelerator, Accelerate joins several processes only when told to compute on the CPU; otherwise each
    would believe it is alone.

    Returns:
        Accelerate's shared state: rank, number of processes, device.
    """
    return PartialState(cpu=not torch.accelerator.is_available())
