"""What the next log averages over, kept in a checkpoint: a run that goes on logs what it would have logged."""

from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_progressive.penalty.step_log import StepLog

if TYPE_CHECKING:
    from transformers import Trainer as _Behind
else:
    _Behind = object

_NAME = "LogWindow"


class LogWindow(_Behind):
    """The part of `ProgressiveMixin` that carries the steps since the last log through a checkpoint.

    Trainer itself (Transformers 5.23) begins a new mean where it goes on. Here trainer_state.json has the sums, among
    the states of callbacks; a checkpoint without them begins a new mean, too.
    """

    _phi_log: StepLog
    _divergences: list[Tensor]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.state.stateful_callbacks[_NAME] = {
            "step": self._globalstep_last_logged,
            "losses": self.accelerator.gather(self._tr_loss.reshape(1)).tolist(),
            "phi": self._phi_log.state(),
            "divergences": [float(self.accelerator.reduce(one, "mean")) for one in self._divergences],
        }
        super()._save_checkpoint(model, trial)
        del self.state.stateful_callbacks[_NAME]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        kept = self.state.stateful_callbacks.pop(_NAME, None)
        if kept is not None:
            losses = kept["losses"]  # by process
            self._globalstep_last_logged = kept["step"]
            self._tr_loss += losses[self.args.process_index] if len(losses) == self.args.world_size else fmean(losses)
            self._total_loss_scalar -= fmean(losses)  # of steps that this call has not made
            self._phi_log.go_on(kept["phi"])
            self._divergences = [torch.tensor(one, device=self.args.device) for one in kept["divergences"]]
        super()._run_epoch(*args, **kwargs)
