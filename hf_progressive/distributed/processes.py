"""The processes of a launch, whatever they compute on."""

import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping

import torch
import torch.distributed
from accelerate import PartialState
from torch.distributed.distributed_c10d import Store, _get_default_store

_LAST_COLLECTIVE_SECONDS = 0.5
_SHORTEST_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.01, 0.5
_OF_ONE_AMONG_SEVERAL = ("RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""What torchrun and MPI tell a process that is not alone."""

_DONE, _FAILED = "done", "failed: "

_turns = itertools.count()
"""Counts `main_process_first`, which all processes go through in the same order, so that each use has its own name."""


class MainProcessFailedError(ValueError):
    """The first process stopped while this one waited for it; the message is the first one's."""


def current_processes() -> PartialState:
    """Return Accelerate's state of this launch's processes: rank, number of processes, device.

    Without an accelerator, Accelerate joins several processes only when told to compute on the CPU; otherwise each
    would believe it is alone.
    """
    return PartialState(cpu=not torch.accelerator.is_available())


def processes_not_started(environment: Mapping[str, str]) -> str | None:
    """Say so where `accelerate launch` was asked for several processes and started one.

    That is what it does with `--cpu`, and with `distributed_type: NO` in its file: it tells its one process where the
    first of several would be, and no rank.

    Args:
        environment: The process's, of variables' names to their values.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment
    if not launched or not environment.keys().isdisjoint(_OF_ONE_AMONG_SEVERAL):
        return None
    return (
        "one process: `accelerate launch` starts no more with --cpu or distributed_type: NO, whatever its"
        " --num_processes; add --multi_gpu, which takes the CPU where there is no GPU"
    )


@contextlib.contextmanager
def main_process_first(state: PartialState) -> Iterator[None]:
    """Let the first process go through a block before the others, however long that takes.

    The others wait without a collective. In one, NCCL gives up after ten minutes, and Accelerate's own
    `main_process_first` is one; the limit cannot be raised once the processes have met, which is before a Trainer's
    `ddp_timeout` is read. So they look at the store through which they met, a few times a second. All meet when the
    first has left the block, before the others enter it. One process alone has nothing to wait for.

    Raises:
        MainProcessFailedError: On the others, where the block raised an error on the first process, or that is gone.
    """
    if state.num_processes == 1 or not torch.distributed.is_initialized():
        yield
        return
    store, key = _get_default_store(), f"hf_progressive/turn/{next(_turns)}"
    if not state.is_main_process:
        _wait_for_turn(store, key)
        state.wait_for_everyone()
        yield
        return
    try:
        yield
    except BaseException as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        with contextlib.suppress(RuntimeError):  # the others may be gone, and the store with them
            store.set(key, _FAILED + reason)
        raise
    store.set(key, _DONE)
    state.wait_for_everyone()  # a moment, until all have looked: the store may go with this process


def _wait_for_turn(store: Store, key: str) -> None:
    pause = _SHORTEST_POLL_SECONDS
    try:
        while not store.check([key]):
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_POLL_SECONDS)
        word = store.get(key).decode()
    except RuntimeError as error:  # the store goes with the process, or the launcher, that holds it
        raise MainProcessFailedError(f"the first process is gone ({error}); its own message says why") from error
    if word.startswith(_FAILED):
        raise MainProcessFailedError(word.removeprefix(_FAILED))


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
