"""CORE, the DCLM paper's aggregate of in-context learning tasks, for any causal language model.

Every task's accuracy a is centred on the accuracy b of a random guess, so that 0 is chance and 1 is perfect, and the
score is the mean over the tasks (Li et al. 2024, https://arxiv.org/abs/2406.11794):

    CORE = 1/22 Σ_t (a_t − b_t) / (1 − b_t)

A task is answered in one of three ways:

- multiple choice: the option with the lowest mean loss over its scored tokens, the options sharing a context;
- schema: the same, the options sharing their continuation and differing in the context;
- language modelling: right if every token of the continuation is the arg max.

An exact tie goes to the first option, or to the lowest token id, and is counted: a model whose logits are all equal
answers option 0 everywhere. `bundle` says where tasks come from, `prompts` how they are asked and which tokens are
scored, `scoring` how the model is run.

Standard errors are binomial, √(a (1 − a) / n), and say how well n examples pin the accuracy down, tasks taken as
independent; they do not cover the choice of few-shot examples or the seed a model was trained with.
"""

import contextlib
import logging
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_progressive.config import strict_yaml
from hf_progressive.distributed.model_in_memory import require_in_memory
from hf_progressive.distributed.processes import current_processes, main_process_first
from hf_progressive.evaluation.core.bundle import CORE_TASKS, Bundle, Task, load_bundle
from hf_progressive.evaluation.core.finished_tasks import FinishedTasks, digest_model, task_key
from hf_progressive.evaluation.core.forward import can_reuse_prefixes
from hf_progressive.evaluation.core.prompts import build_requests, draw_examples
from hf_progressive.evaluation.core.scoring import Answer, judge, score_requests

logger = logging.getLogger(__name__)

_CHUNK_EXAMPLES = 512
"""Examples tokenized and sorted by length at a time: it bounds memory, not what is computed."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """How a model did on one task."""

    label: str
    kind: str
    shots: int
    """Solved examples shown, fewer than the task asks for where the subsample has too few."""
    baseline: float
    """Accuracy of a random guess."""
    examples: int
    accuracy: float
    standard_error: float
    """Of the accuracy."""
    centred: float
    """(accuracy − baseline) / (1 − baseline)."""
    centred_standard_error: float
    truncated: int
    """Examples whose prompt lost its beginning to the model's context."""
    ties: int
    """Examples that hung on an exact tie."""


@dataclass(frozen=True, kw_only=True)
class CoreResult:
    """A model's CORE, or what part of it the bundle allows."""

    name: str
    """"CORE" if all 22 tasks were evaluated, otherwise "CORE (18 of 22 tasks)" and the like."""
    score: float
    """Mean centred accuracy over the tasks evaluated."""
    standard_error: float
    tasks: tuple[TaskResult, ...] = field(repr=False)
    absent: tuple[str, ...]
    """Tasks that the bundle lists and has no data for."""
    max_per_task: int | None
    """Examples asked per task at most; None for all."""
    context: int | None
    """Tokens the model reads at once; None where there is no limit."""
    bos_token: str | None
    """What was put before every prompt; None where the tokenizer has no such token."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return asdict(self) | {"tasks": [asdict(task) for task in self.tasks], "absent": list(self.absent)}

    def table(self) -> str:
        """Write the result as an aligned text table."""
        header = ("task", "shots", "examples", "accuracy", "centred", "truncated", "ties")
        lines = [header] + [
            (
                task.label,
                str(task.shots),
                str(task.examples),
                f"{task.accuracy:.4f} ± {task.standard_error:.4f}",
                f"{task.centred:.4f} ± {task.centred_standard_error:.4f}",
                str(task.truncated),
                str(task.ties),
            )
            for task in self.tasks
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(
                [line[0].ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(line[1:], widths[1:], strict=True))]
            )
            for line in lines
        ]
        text.append(f"{self.name}: {self.score:.4f} ± {self.standard_error:.4f}")
        if self.absent:
            text.append(f"no data for: {', '.join(self.absent)}")
        return "\n".join(text)


def evaluate_core(
    model: PreTrainedModel,
    tokenizer: Any,
    bundle: Bundle | str | os.PathLike[str],
    *,
    tasks: Iterable[str] | None = None,
    max_per_task: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
    resume_file: str | os.PathLike[str] | None = None,
) -> CoreResult:
    """Evaluate a causal language model on CORE: the mean, over 22 tasks, of the accuracy centred on chance.

    0 is a random guess and 1 is perfect; the module's docstring has the definition (Li et al. 2024, arXiv 2406.11794).

    Under `accelerate launch` the examples are split over the processes; every process has to call this, with the same
    weights on its own device, and every one gets the whole result.

    Args:
        model: Any causal language model of transformers.
        tokenizer: Its tokenizer.
        bundle: The folder of a CORE bundle, or what `load_bundle` made of it.
        tasks: Labels of the tasks to evaluate; None for all that have data.
        max_per_task: Examples to ask per task, drawn with a fixed seed; None for all.
        batch_size: Sequences in one forward pass, at most; None for as many as the device's memory allows. It does not
            change the answers, exact ties excepted.
        progress: Show a bar on stderr.
        resume_file: JSON file of finished tasks: read if it exists, written after each task, for one evaluation at a
            time.

    Returns:
        The score, a share, and each task's part in it; `.table()` shows them.

    Raises:
        FileNotFoundError: The bundle lacks a file it cannot do without.
        ValueError: The bundle is malformed, a task is unknown, a number is out of range, the model's loss is not a
            number, or another evaluation has the resume file.

    >>> result = evaluate_core(model, tokenizer, "eval_bundle", max_per_task=500)  # doctest: +SKIP
    >>> print(result.table())  # doctest: +SKIP
    """
    require_in_memory(model)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give 1 or more")
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    chosen = bundle.select(tasks)
    state = current_processes()
    results: list[TaskResult] = []
    finished, digest = None, ""
    with contextlib.ExitStack() as stack:
        with main_process_first(state):  # a digest reads the whole model
            if resume_file is not None and state.is_main_process:
                finished = stack.enter_context(FinishedTasks.held(resume_file))
                digest = digest_model(model, tokenizer)
        for task in chosen:
            key = task_key(digest, task, max_per_task)
            # What the main process finds in its file is what all of them go by.
            (stored,) = broadcast_object_list([finished.find(task.label, key) if finished else None])
            if stored is None:
                answers = answer_task(
                    model, tokenizer, task, max_per_task=max_per_task, batch_size=batch_size, progress=progress
                )
                result = _summarize(task, answers)
                if finished:
                    finished.record(task.label, key, asdict(result))
            else:
                logger.info("%s is finished already", task.label)
                result = strict_yaml.build(TaskResult, stored, f"{resume_file}: tasks.{task.label}.result")
            results.append(result)
    return CoreResult(
        name=_name([result.label for result in results]),
        score=sum(result.centred for result in results) / len(results),
        standard_error=math.hypot(*(result.centred_standard_error for result in results)) / len(results),
        tasks=tuple(results),
        absent=bundle.absent,
        max_per_task=max_per_task,
        context=context_length(model),
        bos_token=tokenizer.bos_token,
    )


def answer_task(
    model: PreTrainedModel,
    tokenizer: Any,
    task: Task,
    *,
    max_per_task: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> list[Answer]:
    """Ask a model every example of one task; every process gets all answers, in the order of `draw_examples`."""
    examples = draw_examples(task, max_per_task)
    if len(examples) <= task.shots:
        logger.warning(
            "%s: %d examples leave %d to show, not %d", task.label, len(examples), len(examples) - 1, task.shots
        )
    state = current_processes()
    mine = range(state.process_index, len(examples), state.num_processes)
    reuse, context, answers = can_reuse_prefixes(model), context_length(model), list[Answer]()
    with tqdm(
        total=sum(len(examples[index].options) for index in mine),
        desc=task.label,
        unit="option",
        disable=not (progress and state.is_main_process),
    ) as bar:
        for begin in range(0, len(mine), _CHUNK_EXAMPLES):
            requests = build_requests(task, examples, mine[begin : begin + _CHUNK_EXAMPLES], tokenizer, context)
            scores = score_requests(model, requests, batch_size=batch_size, reuse_prefixes=reuse, on_rows=bar.update)
            answers += map(judge, requests, scores)
    numbered = list(zip(mine, answers, strict=True))
    return [answer for _, answer in sorted(gather_object(numbered), key=lambda pair: pair[0])]


def context_length(model: PreTrainedModel) -> int | None:
    """Return how many tokens a model can read at once, or None where its configuration states none."""
    length: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return length


def _summarize(task: Task, answers: Sequence[Answer]) -> TaskResult:
    count = len(answers)
    accuracy = sum(answer.correct for answer in answers) / count
    standard_error = math.sqrt(accuracy * (1 - accuracy) / count)
    return TaskResult(
        label=task.label,
        kind=task.kind,
        shots=min(task.shots, count - 1),
        baseline=task.baseline,
        examples=count,
        accuracy=accuracy,
        standard_error=standard_error,
        centred=(accuracy - task.baseline) / (1 - task.baseline),
        centred_standard_error=standard_error / (1 - task.baseline),
        truncated=sum(answer.truncated for answer in answers),
        ties=sum(answer.tied for answer in answers),
    )


# Only all 22 tasks, and nothing else, make a CORE.
def _name(labels: Sequence[str]) -> str:
    known = sum(label in CORE_TASKS for label in labels)
    others = len(labels) - known
    if known == len(CORE_TASKS) and not others:
        return "CORE"
    return f"CORE ({known} of {len(CORE_TASKS)} tasks{f', {others} other' if others else ''})"
