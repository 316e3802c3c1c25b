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


def leave_processes() -> None:
    """End this process's part in the launch, after its last collective and before the interpreter shuts down.

    Threads of gloo that still hold a tensor while the interpreter goes abort the process (exit code -6), now and then
    and after all the work is done; https://github.com/pytorch/pytorch/pull/179291. A process alone has nothing to end.
    """
    current_processes().destroy_process_group()
