"""The tasks of Transformers' stock classes beside causal language models: where their targets are, and what form.

Each class has one loss, the mean over its targets; a task here says what the targets of an example are. That a class
scores itself so is tried out on one example, by its own loss.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from hf_progressive.distributed.working_dtype import working_dtype
from hf_progressive.estimation.likelihood import (
    IGNORED_LABEL,
    Form,
    LabelKind,
    negative_log_likelihood,
)
from hf_progressive.estimation.loss_callable import attention_mask, example_count, one_example, shapes, to_device

LOSS_REMEDY = "pass loss=, a callable of model and batch that returns the loss of each example, (B,)"
"""What to do where a model's targets are not known."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What the examples of a batch have to predict."""

    values: Tensor
    """(B, K); of categories, -100 where there is none."""
    form: Form
    labels: Mapping[str, Tensor]
    """The same as the model takes it."""


@dataclass(frozen=True, kw_only=True)
class LabelledTask:
    """A task of which a batch holds labels."""

    title: str
    registries: tuple[str, ...]
    """Names of the tables in `transformers.models.auto.modeling_auto` that list its classes."""
    scores: Callable[[Any, Form], Tensor]
    """Of a model's output: logits (B, K, V) of categories, logits or means (B, K) of other forms."""
    read_targets: Callable[[Mapping[str, Any], PretrainedConfig, LabelKind], Targets]
    """From a batch's fields."""
    label_names: tuple[str, ...] = ("labels",)
    passes_labels: bool = False
    """Whether the model makes of them what its decoder reads."""


@dataclass(frozen=True, kw_only=True)
class LabelledBatch:
    """A batch of a labelled task."""

    task: LabelledTask
    inputs: Mapping[str, Any]
    """What the model is called with."""
    targets: Targets

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.targets.values)

    @property
    def layout(self) -> tuple[object, ...]:
        """The tensors' shapes."""
        return shapes(self.inputs)

    def tokens(self) -> Tensor | None:
        """Return the attention mask, where the batch has one."""
        return attention_mask(self.inputs)

    def split(self) -> Iterator["LabelledBatch"]:
        """Yield the examples one by one, as batches of one."""
        for row in range(len(self)):
            yield self.example(row)

    def example(self, row: int) -> "LabelledBatch":
        """Return a batch of one."""
        labels = one_example(self.targets.labels, row)
        targets = Targets(values=self.targets.values[row : row + 1], form=self.targets.form, labels=labels)
        return LabelledBatch(task=self.task, inputs=one_example(self.inputs, row), targets=targets)

    def losses(self, model: nn.Module, kind: LabelKind, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return each target's loss, and where there are targets."""
        scores = self._scores(model)
        values, form = self.targets.values, self.targets.form
        nll = negative_log_likelihood(form, scores, values, kind, generator)
        return nll, values != IGNORED_LABEL if form == "categories" else torch.ones_like(values, dtype=torch.bool)

    def _scores(self, model: nn.Module) -> Tensor:
        kind, values = type(model).__name__, self.targets.values
        output = model(**self.inputs)
        try:
            scores = self.task.scores(output, self.targets.form)
        except AttributeError as error:
            raise ValueError(f"{kind}: {error}, as {self.task.title} has it; {LOSS_REMEDY}") from error
        scores = scores.to(working_dtype(scores.dtype))
        expected = scores.shape[:2] if self.targets.form == "categories" else scores.shape
        if expected != values.shape:
            raise ValueError(
                f"the labels are for {tuple(values.shape[1:])} targets of each example, {kind} predicts "
                f"{tuple(expected[1:])}; make them fit"
            )
        if self.targets.form == "categories":
            wrong = (values != IGNORED_LABEL) & ((values < 0) | (values >= scores.shape[2]))
            if bool(wrong.any()):
                raise ValueError(
                    f"a label is {int(values[wrong][0])}; it must be from 0 to {scores.shape[2] - 1}, or -100"
                )
        return scores

    @torch.no_grad()
    def compare_with_own_loss(self, model: nn.Module) -> bool:
        """Raise a ValueError if a model scores an example otherwise than this task; False if that cannot be told."""
        counts = (self.targets.values != IGNORED_LABEL).sum(1)
        one = self.example(int(counts.argmax()))
        values, counted = one.losses(model, "empirical", torch.Generator())
        config = _core_config(model)
        problem = getattr(config, "problem_type", None)
        own = getattr(model(**{**one.inputs, **one.targets.labels}), "loss", None)
        if config is not None:
            config.problem_type = problem  # which a model sets when it meets its first labels
        if not bool(counted.any()) or own is None or not bool(own.isfinite()):
            return False
        require_own_loss(model, self.task.title, float(values.sum() / counted.sum()), own)
        return True


def _core_config(model: nn.Module) -> Any:
    configs = (getattr(module, "config", None) for module in model.modules())
    return next((config for config in configs if isinstance(config, PretrainedConfig)), None)


def require_own_loss(model: nn.Module, title: str, mean: float, own: Tensor) -> None:
    """Raise a ValueError unless a model's own loss of an example is the mean over its targets."""
    tolerance = 1e-3 if next(model.parameters()).dtype in (torch.float32, torch.float64) else 5e-2
    if abs(mean - float(own)) > tolerance * max(abs(mean), 0.1):
        raise ValueError(
            f"{type(model).__name__} gives an example the loss {float(own):.4g}, while the mean over its targets as "
            f"those of {title} is {mean:.4g}; {LOSS_REMEDY}"
        )


def read_labelled(
    task: LabelledTask,
    batch: Tensor | Mapping[str, Any],
    device: torch.device,
    *,
    config: PretrainedConfig,
    accepted: frozenset[str],
    main_input: str,
    kind: LabelKind,
) -> LabelledBatch:
    """Bring what a data loader yields into one form; columns that the model does not take are left out."""
    fields = to_device({main_input: batch} if isinstance(batch, Tensor) else batch, device)
    known = {name: value for name, value in fields.items() if name in accepted}
    if main_input not in known and "inputs_embeds" not in known:
        raise ValueError(f"a batch has the keys {sorted(fields)}, but no {main_input}; yield dicts with {main_input}")
    example_count(known)
    targets = task.read_targets(known, config, kind)
    inputs = {name: value for name, value in known.items() if name not in task.label_names}
    if task.passes_labels:
        if "decoder_input_ids" not in inputs:
            inputs |= targets.labels
        inputs["use_cache"] = False
    return LabelledBatch(task=task, inputs=inputs, targets=targets)


def _labels(fields: Mapping[str, Any], name: str, kind: LabelKind, needed: str = "") -> Tensor | None:
    labels = fields.get(name)
    if isinstance(labels, Tensor):
        return labels
    if kind == "empirical" or needed:
        reason = needed or "or pass kind='true' to sample them from the model"
        raise ValueError(
            f"a batch has the keys {sorted(fields)}, but no {name}; only a causal language model takes its targets "
            f"from input_ids: give {name}, {reason}"
        )
    return None


def _token_labels(fields: Mapping[str, Any], config: PretrainedConfig, kind: LabelKind) -> Targets:
    labels = _labels(fields, "labels", kind)
    if labels is None:
        ids = fields.get("input_ids", fields.get("inputs_embeds"))
        assert ids is not None
        labels = torch.zeros(ids.shape[:2], dtype=torch.long, device=ids.device)
        if "attention_mask" in fields:
            labels = labels.masked_fill(fields["attention_mask"] == 0, IGNORED_LABEL)
    return Targets(values=labels, form="categories", labels={"labels": labels})


def _given_labels(fields: Mapping[str, Any], config: PretrainedConfig, kind: LabelKind, *, remedy: str) -> Targets:
    labels = _labels(fields, "labels", kind, remedy)
    assert labels is not None
    return Targets(values=labels, form="categories", labels={"labels": labels})


def _class_labels(fields: Mapping[str, Any], config: PretrainedConfig, kind: LabelKind) -> Targets:
    labels = _labels(fields, "labels", kind)
    form = _class_form(config, labels)
    columns = 1 if form == "categories" else config.num_labels
    if labels is None:
        count, device = example_count(fields), next(v for v in fields.values() if isinstance(v, Tensor)).device
        shape = (count,) if form == "categories" or columns == 1 else (count, columns)
        labels = torch.zeros(shape, dtype=torch.long if form == "categories" else torch.float32, device=device)
    if labels.numel() != len(labels) * columns:
        raise ValueError(f"labels has shape {tuple(labels.shape)}; {columns} for each example are needed")
    return Targets(values=labels.reshape(len(labels), columns), form=form, labels={"labels": labels})


def _class_form(config: PretrainedConfig, labels: Tensor | None) -> Form:
    # As Transformers' ForSequenceClassificationLoss infers it.
    problem = getattr(config, "problem_type", None)
    if problem == "regression" or (problem is None and config.num_labels == 1):
        return "numbers"
    if problem == "multi_label_classification":
        return "switches"
    whole = labels is None or labels.dtype in (torch.int64, torch.int32)
    return "categories" if problem == "single_label_classification" or whole else "switches"


def _choice_labels(fields: Mapping[str, Any], config: PretrainedConfig, kind: LabelKind) -> Targets:
    labels = _labels(fields, "labels", kind)
    if labels is None:
        ids = next(value for value in fields.values() if isinstance(value, Tensor))
        labels = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
    return Targets(values=labels.reshape(-1, 1), form="categories", labels={"labels": labels})


def _span_labels(fields: Mapping[str, Any], config: PretrainedConfig, kind: LabelKind) -> Targets:
    read = fields.get("input_ids", fields.get("inputs_embeds"))
    assert read is not None
    names = ("start_positions", "end_positions")
    found = [_labels(fields, name, kind) for name in names]
    ends = [torch.zeros(len(read), dtype=torch.long, device=read.device) if e is None else e for e in found]
    values = torch.stack([end.reshape(len(read)) for end in ends], dim=1).clamp(0, read.shape[1])
    values = values.masked_fill(values == read.shape[1], IGNORED_LABEL)  # an answer that was cut off
    return Targets(values=values, form="categories", labels=dict(zip(names, ends, strict=True)))


def _logits(output: Any, form: Form) -> Tensor:
    logits: Tensor = output.logits
    return logits


def _class_scores(output: Any, form: Form) -> Tensor:
    logits: Tensor = output.logits
    return logits[:, None] if form == "categories" else logits


def _span_scores(output: Any, form: Form) -> Tensor:
    return torch.stack([output.start_logits, output.end_logits], dim=1)  # (B, 2, T)


LABELLED_TASKS = (
    LabelledTask(
        title="sequence-to-sequence models",
        registries=("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ"),
        scores=_logits,
        read_targets=functools.partial(_given_labels, remedy="from which the decoder's input is made"),
        passes_labels=True,
    ),
    LabelledTask(
        title="masked language models",
        registries=("MASKED_LM",),
        scores=_logits,
        read_targets=functools.partial(_given_labels, remedy="-100 where no token is to be predicted"),
    ),
    LabelledTask(
        title="token classification",
        registries=("TOKEN_CLASSIFICATION",),
        scores=_logits,
        read_targets=_token_labels,
    ),
    LabelledTask(
        title="classification",
        registries=(
            "SEQUENCE_CLASSIFICATION",
            "IMAGE_CLASSIFICATION",
            "AUDIO_CLASSIFICATION",
            "VIDEO_CLASSIFICATION",
        ),
        scores=_class_scores,
        read_targets=_class_labels,
    ),
    LabelledTask(
        title="multiple choice",
        registries=("MULTIPLE_CHOICE", "NEXT_SENTENCE_PREDICTION"),
        scores=_class_scores,
        read_targets=_choice_labels,
    ),
    LabelledTask(
        title="question answering",
        registries=("QUESTION_ANSWERING", "DOCUMENT_QUESTION_ANSWERING"),
        scores=_span_scores,
        read_targets=_span_labels,
        label_names=("start_positions", "end_positions"),
    ),
)
"""In the order in which a class is looked up."""
