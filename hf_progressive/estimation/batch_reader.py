"""What a model's targets are, told by its class; or by a loss that comes with it."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from hf_progressive.config.ranges import class_of, shown
from hf_progressive.distributed.model_tables import require_within_tables
from hf_progressive.estimation.labelled_tasks import (
    LABELLED_TASKS,
    LOSS_REMEDY,
    LabelledBatch,
    LabelledTask,
    read_labelled,
    require_own_loss,
)
from hf_progressive.estimation.likelihood import IGNORED_LABEL, ExampleBatch, LabelKind, SequenceBatch, read_batch
from hf_progressive.estimation.loss_callable import Loss, read_for_loss


class BatchReader:
    """Brings what a data loader yields into one form, by a model's task."""

    def __init__(self, model: nn.Module, *, loss: Loss | None, kind: LabelKind):
        self._model, self._kind, self._loss = model, kind, loss
        self._core = _core(model)
        self._accepted = frozenset(inspect.signature(self._core.forward).parameters)
        self._task = None if loss is not None else labelled_task(self._core)
        # Of a class of one's own, its own loss tells whether it is what it is taken for.
        self._compares = loss is None and "labels" in self._accepted and not _is_known_causal(self._core)
        if loss is None and self._task is None:
            self._require_causal()
        for name in self._task.label_names if self._task else ():
            if name not in self._accepted:
                raise ValueError(f"{class_of(self._core)} takes no {name} and so has no loss; {LOSS_REMEDY}")

    def _require_causal(self) -> None:
        core = self._core
        if not isinstance(core, PreTrainedModel) or _is_known_causal(core):
            return
        if not self._compares or getattr(core.config, "is_encoder_decoder", False):
            titles = ", ".join(task.title for task in LABELLED_TASKS)
            raise ValueError(
                f"the targets of {class_of(core)} are not known here, but those of causal language models, "
                f"{titles}; {LOSS_REMEDY}"
            )

    def __call__(self, batch: Any, device: torch.device) -> ExampleBatch:
        """Read a batch, on the device."""
        if self._loss is not None:
            return read_for_loss(batch, device, self._loss)
        if not isinstance(batch, Tensor | Mapping):
            what = f"the text {shown(batch)}" if isinstance(batch, str) else class_of(batch)
            raise ValueError(
                f"a batch is {what}; give a list of batches, each a tensor or a mapping, as tokenizers return it under"
                " return_tensors='pt'"
            )
        for name, value in batch.items() if isinstance(batch, Mapping) else ():
            if name in self._accepted and _is_of_numbers(value):
                raise ValueError(
                    f"a batch's {name} is {class_of(value)} of numbers; give a tensor, as tokenizers do"
                    " under return_tensors='pt', and a DataLoader with a data collator of a dataset's examples"
                )
        ids = batch if isinstance(batch, Tensor) else batch.get("input_ids")
        if isinstance(ids, Tensor) and ids.ndim == 2:
            require_within_tables(self._core, ids, "a batch's sequences")
        if self._task is None:
            return read_batch(batch, device)
        core: Any = self._core
        return read_labelled(
            self._task,
            batch,
            device,
            config=core.config,
            accepted=self._accepted,
            main_input=core.main_input_name,
            kind=self._kind,
        )

    def compare_with_own_loss(self, batch: ExampleBatch) -> bool:
        """Raise a ValueError if the model scores an example of the batch otherwise; False if that cannot be told."""
        if isinstance(batch, LabelledBatch):
            return batch.compare_with_own_loss(self._model)
        if not self._compares:
            return True
        assert isinstance(batch, SequenceBatch)
        return self._compare_sequence(batch)

    @torch.no_grad()
    def _compare_sequence(self, batch: SequenceBatch) -> bool:
        one = list(batch.split())[int(batch.tokens_per_sequence.argmax())]
        if not bool(one.tokens_per_sequence):
            return False
        values, counted = one.losses(self._model, "empirical", torch.Generator())
        labels = torch.nn.functional.pad(one.targets[:, :-1], (1, 0), value=IGNORED_LABEL)
        output = self._model(input_ids=one.input_ids, attention_mask=one.attention_mask, labels=labels)
        own = getattr(output, "loss", None)
        if isinstance(own, Tensor):
            require_own_loss(self._model, "causal language models", float(values.sum() / counted.sum()), own)
        return True


def _is_of_numbers(value: Any) -> bool:
    if isinstance(value, list | tuple) and value:
        return isinstance(value[0], int | float) or _is_of_numbers(value[0])
    return isinstance(value, np.ndarray)


def labelled_task(model: nn.Module) -> LabelledTask | None:
    """Return the task of a model of Transformers, None of a causal language model or one that is not known."""
    if not isinstance(model, PreTrainedModel):
        return None
    for task in LABELLED_TASKS:
        if _is_listed(model, task.registries) and (not task.passes_labels or model.config.is_encoder_decoder):
            return task
    return None


def _is_known_causal(model: nn.Module) -> bool:
    return isinstance(model, PreTrainedModel) and _is_listed(model, ("CAUSAL_LM",))


def _is_listed(model: PreTrainedModel, registries: tuple[str, ...]) -> bool:
    names = {kind.__name__ for kind in type(model).__mro__}
    for registry in registries:
        for listed in getattr(modeling_auto, f"MODEL_FOR_{registry}_MAPPING_NAMES", {}).values():
            if not names.isdisjoint((listed,) if isinstance(listed, str) else listed):
                return True
    return False


def _core(model: nn.Module) -> nn.Module:
    # The model of Transformers within its wrappers (DDP, torch.compile, PEFT), or the module itself.
    inner: Any = extract_model_from_parallel(model, keep_torch_compile=False)
    if not isinstance(inner, PreTrainedModel) and hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    core: nn.Module = inner
    return core
