"""From a task's examples to the tokens a model is asked about.

A prompt is the few-shot examples with their answers, each followed by an empty line, then the question and one of
its options; context and continuation are joined by the task's delimiter. Everything random is seeded, so that two
runs, and two tools, ask the same questions: `draw_examples` shuffles with `random.Random(1337)` before it cuts a task
short, `few_shot_indices` draws with `random.Random(1234 + index)` from what was kept, never the example itself.

Tokens. The text is tokenized whole, with nothing added, and the tokenizer's beginning-of-sequence token, if it has
one, is put before it. A text longer than the context keeps its end; the beginning-of-sequence token goes with the
rest.

Which tokens are scored. Subword tokenizers may merge the end of a context with the start of its continuation, so the
border is found among the tokens, by comparing whole tokenizations:

- multiple choice: from the first token in which the options differ;
- schema: the tokens with which all options end alike;
- language modelling: from the first token in which the prompt with its continuation differs from the prompt alone,
  a token that straddles the border thus belonging to the continuation.

At least one token is scored, also where one option is the beginning of another or the continuation merged away
altogether (then the last token of the shortest option counts), and never a window's first token, which nothing
predicts.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hf_progressive.evaluation.core.bundle import Example, Task

SHUFFLE_SEED = 1337
"""Seed of the shuffle before a task is cut short."""

FEW_SHOT_SEED = 1234
"""Seed of the few-shot draw of the first example; the next ones count up."""


class Row(NamedTuple):
    """The tokens of one option, and where its scored part begins."""

    tokens: tuple[int, ...]
    """Context, continuation and all, cut to the model's context."""
    start: int
    """Index of the first scored token, at least 1. All tokens from there on are scored."""


@dataclass(frozen=True, slots=True)
class Request:
    """One example as a model sees it: a row per option."""

    rows: tuple[Row, ...]
    gold: int
    """Which option is right."""
    truncated: bool
    """Whether an option lost its beginning to the model's context."""


def draw_examples(task: Task, max_examples: int | None = None) -> tuple[Example, ...]:
    """Shuffle a task's examples, always in the same way, and keep the first ones; None keeps all."""
    if max_examples is not None and max_examples < 1:
        raise ValueError(f"max_per_task is {max_examples}; give 1 or more, or leave it out for all examples")
    examples = list(task.examples)
    random.Random(SHUFFLE_SEED).shuffle(examples)
    return tuple(examples[:max_examples])


def few_shot_indices(index: int, population: int, shots: int) -> list[int]:
    """Draw the examples shown before one of a population, itself never; where there are fewer others, all of them.

    >>> few_shot_indices(0, 100, 3) == [1 + i for i in random.Random(1234).sample(range(99), 3)]
    True
    """
    drawn = random.Random(FEW_SHOT_SEED + index).sample(range(population - 1), min(shots, population - 1))
    return [other + (other >= index) for other in drawn]


def render_prompts(task: Task, examples: Sequence[Example], index: int) -> list[str]:
    """Write the prompt of one example out, once per option; in language modelling once more without the answer."""
    shown = (examples[other] for other in few_shot_indices(index, len(examples), task.shots))
    shots = "".join(task.delimiter.join(example.options[example.gold]) + "\n\n" for example in shown)
    prompts = [shots + task.delimiter.join(option) for option in examples[index].options]
    if task.kind == "language_modeling":
        context, _ = examples[index].options[0]
        prompts.append((shots + context + task.delimiter).rstrip())
    return prompts


def build_requests(
    task: Task, examples: Sequence[Example], indices: Iterable[int], tokenizer: Any, context: int | None
) -> list[Request]:
    """Render, tokenize and cut some of a task's examples."""
    wanted = list(indices)
    prompts = [render_prompts(task, examples, index) for index in wanted]
    flat = [text for texts in prompts for text in texts]
    encoded = iter(tokenizer(flat, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"])
    bos = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    requests = []
    for index, texts in zip(wanted, prompts, strict=True):
        sequences = [(*bos, *next(encoded)) for _ in texts]
        rows = [Row(tokens, start) for tokens, start in _scored_spans(task, sequences)]
        if any(len(row.tokens) < 2 for row in rows):
            raise ValueError(
                f"task {task.label!r}, example {index}: an option is a single token with nothing before it to predict "
                "it from; use a tokenizer with a beginning-of-sequence token"
            )
        truncated = context is not None and any(len(row.tokens) > context for row in rows)
        cut = tuple(_keep_end(row, context or len(row.tokens)) for row in rows)
        requests.append(Request(cut, examples[index].gold, truncated))
    return requests


# Every option's tokens and the index at which its scored part begins.
def _scored_spans(task: Task, sequences: list[tuple[int, ...]]) -> list[tuple[tuple[int, ...], int]]:
    shortest = min(len(tokens) for tokens in sequences)
    match task.kind:
        case "multiple_choice":
            start = min(common_prefix(sequences), shortest - 1)
            return [(tokens, start) for tokens in sequences]
        case "schema":
            shared = max(common_prefix([tokens[::-1] for tokens in sequences]), 1)
            return [(tokens, len(tokens) - shared) for tokens in sequences]
        case "language_modeling":
            whole, _ = sequences
            return [(whole, min(common_prefix(sequences), len(whole) - 1))]


def common_prefix(sequences: Sequence[tuple[int, ...]]) -> int:
    """Count the leading tokens that all sequences share.

    >>> common_prefix([(7, 8, 9), (7, 8), (7, 8, 1, 2)])
    2
    """
    # The least and the greatest in lexicographic order part where any two do.
    least, greatest = min(sequences), max(sequences)
    for position, (a, b) in enumerate(zip(least, greatest, strict=False)):
        if a != b:
            return position
    return min(len(least), len(greatest))


def _keep_end(row: Row, context: int) -> Row:
    lost = max(len(row.tokens) - context, 0)
    return Row(row.tokens[lost:], max(row.start - lost, 1))
