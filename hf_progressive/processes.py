"""The processes of a launch, whatever they compute on."""

import time

import torch
import torch.distributed
from accelerate import PartialState

_LAST_COLLECTIVE_SECONDS = 0.5


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
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        # Groups that a framework still refers to, as DeepSpeed's parameters do, keep their threads: let them come to
        # the end of the last collective.
        time.sleep(_LAST_COLLECTIVE_SECONDS)
