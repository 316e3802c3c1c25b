"""Whether a step's loss is the mean over its micro-batches, against which λ and γ are weighed."""

import dis
import inspect
import logging
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from hf_progressive.distributed.evaluation_mode import evaluation_mode

logger = logging.getLogger(__name__)


_DIVIDES = {"gradient_accumulation_steps", "current_gradient_accumulation_steps"}
_READS_ALL = {"locals", "vars", "eval", "exec"}
_LIBRARIES = {"torch", "transformers", "accelerate", "hf_progressive"}


def warn_of_undivided_loss(
    trainer: Trainer, model: nn.Module, inputs: dict[str, Any], items: Any, own: Callable[..., Any] | None = None
) -> None:
    """Warn if Trainer adds up the mean losses of micro-batches where it should average them.

    It leaves the division to a model that takes `num_items_in_batch` (`Trainer.training_step`); many classifiers take
    it and do not use it. That is found out by one example's loss under two numbers. Causal language models do use it.
    A `compute_loss` of the user's own is not called for this: its code tells.

    Args:
        trainer: The trainer.
        model: The model without wrappers.
        inputs: A micro-batch.
        items: `num_items_in_batch` of the step.
        own: The `compute_loss` that stands in the place of Trainer's, if one does.
    """
    parts = trainer.args.gradient_accumulation_steps
    by_model = trainer.model_accepts_loss_kwargs and items is not None and not trainer.compute_loss_func
    otherwise = trainer.label_smoother or getattr(trainer, "loss_is_scaled_for_ga", None) is not None
    if parts == 1 or not by_model or otherwise:
        return
    if own is not None:
        undivided, what = ignores_items(own, type(trainer)), own.__qualname__
    else:
        undivided, what = _model_ignores_items(trainer, model, inputs), type(model).__name__
    if undivided:
        logger.warning(
            "%s does not divide its loss by num_items_in_batch, and Trainer adds up that of %d micro-batches: λ and γ "
            "weigh 1/%d of what they do without accumulation; multiply them by %d", what, parts, parts, parts
        )  # fmt: skip


def ignores_items(compute_loss: Callable[..., Any], owner: type = object) -> bool:
    """Tell whether a `compute_loss` surely makes no use of `num_items_in_batch`, by its compiled code.

    The code names neither it, nor the keywords that may hold it, nor steps of accumulation to divide by; nor does a
    function or a method of the `owner` that it calls name those steps.

    >>> def mean(self, model, inputs, return_outputs=False, **kwargs):
    ...     return model(**inputs).loss
    >>> def divided(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    ...     return model(**inputs).loss / num_items_in_batch
    >>> ignores_items(mean), ignores_items(divided)
    (True, False)
    """
    code = getattr(compute_loss, "__code__", None)
    if code is None:
        return False
    named = code.co_argcount + code.co_kwonlyargcount
    keywords = code.co_varnames[named + bool(code.co_flags & inspect.CO_VARARGS) :][:1]
    holders = {"num_items_in_batch", *(keywords if code.co_flags & inspect.CO_VARKEYWORDS else ())}
    if _used(code) & (holders | _DIVIDES | _READS_ALL):
        return False
    return not any(_used(helper.__code__) & _DIVIDES for helper in _helpers(compute_loss, owner, []))


def _used(code: CodeType) -> set[Any]:
    used = {*code.co_names, *code.co_cellvars, *code.co_consts}
    for instruction in dis.get_instructions(code):
        if "LOAD" in instruction.opname:
            used |= set(instruction.argval) if isinstance(instruction.argval, tuple) else {instruction.argval}
    return used


def _helpers(function: Any, owner: type, seen: list[Any]) -> list[Any]:
    # The functions that it names, and those that these name. Trainer's own divide no loss of another's.
    for name in function.__code__.co_names:
        found = inspect.getattr_static(owner, name, None) or function.__globals__.get(name)
        found = getattr(found, "__func__", found)  # of a static method
        if inspect.isfunction(found) and found.__module__.split(".")[0] not in _LIBRARIES and found not in seen:
            seen.append(found)
            _helpers(found, owner, seen)
    return seen


def _model_ignores_items(trainer: Trainer, model: nn.Module, inputs: dict[str, Any]) -> bool:
    if getattr(trainer, "_loss_shifts_labels", False):
        return False
    inputs = trainer._prepare_inputs(inputs)
    one = {name: value[:1] if isinstance(value, Tensor) and value.ndim else value for name, value in inputs.items()}
    with evaluation_mode(model), trainer.compute_loss_context_manager():
        losses = []
        for count in (1, 2):
            output = model(**one, num_items_in_batch=torch.tensor(count, device=trainer.args.device))
            losses.append(output["loss"] if isinstance(output, dict) else output[0])
    return bool(losses[0] == losses[1])
