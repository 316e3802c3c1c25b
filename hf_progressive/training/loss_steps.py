"""How a trainer asks its model for the loss: no logits that nobody takes, and every sequence once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import is_compiled_module
from torch import Tensor, nn
from transformers import Trainer

from hf_progressive.data.blocks import NOT_PREDICTED
from hf_progressive.training.loss import return_loss_alone

if TYPE_CHECKING:
    from transformers import Trainer as _Behind
else:
    _Behind = object  # any trainer may stand behind it


class LossSteps(_Behind):
    """The part of `ProgressiveMixin` that computes the task's loss, in training and in evaluation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # DataParallel copies the module and not what its forward pass is bound to.
        others = self.compute_loss_func or self.label_smoother or self.args.use_liger_kernel or self.args.n_gpu > 1
        self._leaves_logits = not others and self._has_stock_loss and return_loss_alone(self.model)
        self._predicts_loss_only = False
        self._last_batch: LastBatch | None = None
        self._compiled_for_evaluation: Any = None

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """Compute the task's loss as `Trainer` does; the model returns no logits unless someone takes them."""
        if self._leaves_logits and (not return_outputs or self._predicts_loss_only) and "labels" in inputs:
            inputs = {**inputs, "loss_alone": True}
        if self._last_batch is not None:
            kwargs["num_items_in_batch"] = None  # the mean of this process's own
        return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)

    @property
    def _has_stock_loss(self) -> bool:
        # Another trainer's loss reads the logits, and may see a batch that is not one row per sequence.
        return self._own_compute_loss is None

    @property
    def _own_compute_loss(self) -> Callable[..., Any] | None:
        # What stands in the place of Trainer's, before this class or behind it.
        first, behind = type(self).compute_loss, super().compute_loss
        if first is not LossSteps.compute_loss:
            return first
        behind = getattr(behind, "__func__", behind)
        return None if behind is Trainer.compute_loss else behind

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Build the model anew as `Trainer` does, each time a search begins another trial."""
        model: nn.Module = super().call_model_init(trial)
        if getattr(self, "_leaves_logits", False):
            self._leaves_logits = return_loss_alone(model)
        return model

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> Any:
        """Evaluate a micro-batch as `Trainer` does; compiled while training is, and then always of one size.

        On several processes, a loss that is wanted alone counts every sequence once (see `LastBatch`).
        """
        self._predicts_loss_only = prediction_loss_only
        alone = prediction_loss_only and self._has_stock_loss
        last = self._last_batch = LastBatch.of(self.accelerator, inputs) if alone else None
        if last is not None:
            inputs = last.inputs
        try:
            if alone and self.is_in_train and is_compiled_module(self.model_wrapped):
                model = self._compiled_model(model)
                inputs = filled_up(inputs, rows=self.args.eval_batch_size)
            loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)
        finally:
            self._predicts_loss_only, self._last_batch = False, None
        return loss if last is None or loss is None else last.mean(loss), logits, labels

    def _compiled_model(self, model: nn.Module) -> Any:
        # Trainer evaluates the bare model. Under DDP the compiled one would wait for the other processes.
        if getattr(self.model_wrapped, "_orig_mod", None) is model:
            return self.model_wrapped
        if self._compiled_for_evaluation is None:
            options = self.accelerator.state.dynamo_plugin.to_kwargs()
            self._compiled_for_evaluation = torch.compile(model, **options)
        return self._compiled_for_evaluation


@dataclass(frozen=True, kw_only=True)
class LastBatch:
    """What one process reads of an evaluation's last batch on several processes, each sequence counting once.

    Where sequences do not fill the last batch, Accelerate fills it up with the first ones again, so that all processes
    read as many. Trainer then takes a process's mean, repetitions included, for the loss of each that is none.
    """

    accelerator: Accelerator
    """The processes."""

    inputs: dict[str, Tensor]
    """This process's sequences without repetitions; where it has no others, those, for engines whose processes must
    all compute."""

    rows: int
    """How many of them are no repetitions."""

    @classmethod
    def of(cls, accelerator: Accelerator, inputs: dict[str, Any]) -> "LastBatch | None":
        """Take the repetitions out of a micro-batch that a data loader of the accelerator has just given out.

        Return None where it has no repetitions, or holds anything but tensors of equally many rows.
        """
        state, size = accelerator.gradient_state, _rows_of(inputs)
        if accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0 or size is None:
            return None
        if getattr(accelerator, "parallelism_config", None) is not None:  # several processes may read the same
            return None
        rows = min(max(state.remainder - accelerator.process_index * size, 0), size)
        own = {name: value[: rows or size] for name, value in inputs.items()}
        return cls(accelerator=accelerator, inputs=own, rows=rows)

    def mean(self, loss: Tensor) -> Tensor:
        """Average this process's mean loss over the sequences of all processes; every one must call it."""
        rows = torch.full_like(loss, self.rows)
        sums: Tensor = self.accelerator.reduce(torch.stack([loss * rows, rows]), reduction="sum")
        return sums[0] / sums[1]


def filled_up(inputs: dict[str, Any], *, rows: int) -> dict[str, Any]:
    """Fill a micro-batch up to so many rows, by ones that predict nothing, so that compiled code meets one size.

    The mean loss stays the same but for rounding. Anything but tensors of equally many rows, `labels` among them, is
    returned as it is.

    >>> filled_up({"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([[5, 6]])}, rows=2)["labels"].tolist()
    [[5, 6], [-100, -100]]
    """
    size = _rows_of(inputs)
    if "labels" not in inputs or size is None or size >= rows:
        return inputs
    missing = rows - size
    filled = {name: torch.cat([value, value[-1:].expand(missing, *value.shape[1:])]) for name, value in inputs.items()}
    filled["labels"][-missing:] = NOT_PREDICTED
    return filled


def _rows_of(inputs: dict[str, Any]) -> int | None:
    # None unless all are tensors of equally many rows
    tensors = all(isinstance(value, Tensor) and value.ndim for value in inputs.values())
    sizes = {len(value) for value in inputs.values()} if tensors else set()
    return sizes.pop() if len(sizes) == 1 else None
