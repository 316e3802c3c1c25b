"""Bits per byte: the loss in a unit that does not depend on the tokenizer.

    bits per byte = Σ nats of the predicted tokens / (ln 2 · Σ UTF-8 bytes of these tokens)

The sums run over a corpus, so that long and short documents weigh by their length. A special token that is predicted
(the end of a document inside a packed block) costs nats and has no bytes; texts measured by `text_bits_per_byte` have
none. Source: Gao et al. 2020 (The Pile, arXiv 2101.00027), section 3.1.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hf_progressive.config.ranges import class_of
from hf_progressive.data import Block, token_byte_lengths
from hf_progressive.data.blocks import NOT_PREDICTED
from hf_progressive.data.tokenizer import encode_documents
from hf_progressive.distributed.batching import in_halves, sequences_that_fit
from hf_progressive.distributed.evaluation_mode import evaluation_mode
from hf_progressive.distributed.model_in_memory import require_in_memory
from hf_progressive.distributed.model_tables import require_within_tables
from hf_progressive.distributed.working_dtype import working_dtype

_DESCRIPTION = "Bits per byte: summed negative log-likelihood, in bits, over UTF-8 bytes of text."

_INPUTS = """
Args:
    predictions: Nats, the summed negative log-likelihood of each text's or block's predicted tokens.
    references: UTF-8 bytes of these tokens.

Returns:
    bits_per_byte: Σ predictions / (ln 2 · Σ references).
"""

_CITATION = """\
@article{gao2020pile,
  title={The {P}ile: An 800{GB} dataset of diverse text for language modeling},
  author={Gao, Leo and Biderman, Stella and Black, Sid and others},
  journal={arXiv preprint arXiv:2101.00027},
  year={2020}
}"""


_CPU_SEQUENCES = 8  # in one forward pass
_SHORTEST = 2  # tokens of a block, one of which is predicted


class BitsPerByte(evaluate.Metric):
    """The metric as an `evaluate.Metric`; it needs no network.

    Nats and bytes may be added one by one, in batches or all at once, in one process; several gather theirs first.
    What is added is kept in memory, and not in a file of the cache folder, unless `keep_in_memory` is False.

    >>> metric = BitsPerByte()
    >>> metric.add_batch(predictions=[math.log(2) * 6], references=[2])
    >>> metric.compute(predictions=[math.log(2) * 2], references=[2])
    {'bits_per_byte': 2.0}
    """

    def __init__(self, *, keep_in_memory: bool = True, **options: Any):
        super().__init__(keep_in_memory=keep_in_memory, **options)

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Sequence[float], references: Sequence[int]) -> dict[str, float]:
        return {"bits_per_byte": bits_per_byte_of_nats(math.fsum(predictions), sum(references))}


def bits_per_byte_of_nats(nats: float, byte_count: int) -> float:
    """Convert the summed negative log-likelihood of a text of that many UTF-8 bytes.

    >>> bits_per_byte_of_nats(math.log(2) * 12, 4)
    3.0
    """
    if byte_count <= 0:
        raise ValueError(f"bits per byte: {byte_count} bytes of text, so that there is nothing to divide by")
    return nats / (math.log(2) * byte_count)


def bits_per_byte(
    model: PreTrainedModel,
    blocks: Dataset[Block],
    token_bytes: Any,
    *,
    batch_size: int | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Measure bits per byte on packed blocks of tokens, as a ladder validates its rungs.

    Bits per byte = Σ nats of the predicted tokens / (ln 2 · Σ UTF-8 bytes of these tokens); every token of a block but
    its first is predicted. `text_bits_per_byte` measures texts instead, and compares models of different tokenizers.
    Source: Gao et al. 2020 (The Pile, arXiv 2101.00027), section 3.1.

    Args:
        model: A causal language model; it is left in the mode that it was in.
        blocks: Items with `input_ids` of one length, (T,), as `Corpus.validation` or a list of such dicts.
        token_bytes: UTF-8 bytes of each token, (vocabulary,), from `hf_progressive.data.token_byte_lengths`.
        batch_size: Blocks per forward pass, at most; None for 8 on a CPU, elsewhere for as many as the device's
            memory allows. It changes the time and, but for rounding, not the result.
        progress: Show a bar.

    Returns:
        `loss` (nats per predicted token), `bits_per_byte`, `tokens` (predicted), `bytes` (of these).

    Raises:
        ValueError: The predicted tokens have no bytes, blocks or lengths are none, or there is no block.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=1, n_positions=8, vocab_size=16))
    >>> for parameter in model.parameters():  # all tokens alike: log2(16) bits each
    ...     _ = parameter.data.zero_()
    >>> blocks = [{"input_ids": torch.arange(8)}, {"input_ids": torch.arange(8, 16)}]
    >>> result = bits_per_byte(model, blocks, [1] * 16, progress=False)
    >>> round(result["bits_per_byte"], 6), result["tokens"], result["bytes"]
    (4.0, 14, 14)
    """
    require_in_memory(model)
    lengths = _byte_lengths(token_bytes)
    nats, tokens, byte_count = [], 0, 0
    if len(DataLoader(blocks)) == 0:
        raise ValueError("blocks: there are none to measure")
    _require_block(blocks[0])
    if batch_size is None:
        batch_size = sequences_that_fit(model, len(blocks[0]["input_ids"]), on_cpu=_CPU_SEQUENCES)
    with evaluation_mode(model):
        for batch in tqdm(
            DataLoader(blocks, batch_size=batch_size, collate_fn=_stacked),
            desc="Bits per byte",
            disable=None if progress else True,
        ):
            inputs, targets = batch[:, :-1], batch[:, 1:]  # (B, T-1)
            require_within_tables(model, inputs, "blocks")
            if (largest := int(targets.max())) >= len(lengths):
                raise ValueError(f"token_bytes has {len(lengths)} entries, and blocks hold the token id {largest}")
            nats += _summed_nats(model, inputs, targets)
            tokens += targets.numel()
            byte_count += int(lengths[targets].sum())
    return _result(math.fsum(nats), tokens, byte_count)


def _byte_lengths(token_bytes: Any) -> Tensor:
    try:
        lengths = torch.as_tensor(token_bytes)
    except (RuntimeError, TypeError, ValueError):
        lengths = torch.zeros(())
    if lengths.ndim != 1:
        raise ValueError(
            f"token_bytes is {class_of(token_bytes)} that is no row of numbers; give the bytes of every token, which"
            " hf_progressive.data.token_byte_lengths(tokenizer) returns"
        )
    return lengths


def _require_block(block: Any) -> None:
    ids = block.get("input_ids") if isinstance(block, Mapping) else None
    if not isinstance(ids, Tensor) or ids.ndim != 1:
        items = isinstance(block, Mapping)
        what = f"input_ids of the first are {class_of(ids)}" if items else f"the first is {class_of(block)}"
        raise ValueError(
            f"blocks: {what}; give items with input_ids that are tensors, (T,), such as"
            " [{'input_ids': ids} for ids in tensor], or dataset.with_format('torch')"
        )


def _stacked(items: Sequence[Block]) -> Tensor:
    rows = [item["input_ids"] for item in items]
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1 or lengths[0] < _SHORTEST:
        some = f"{lengths[0]} to {lengths[-1]}" if len(lengths) > 1 else f"{lengths[0]}"
        raise ValueError(
            f"blocks have {some} tokens; give blocks of one length, 2 or more, or measure texts by text_bits_per_byte"
        )
    return torch.stack(rows)


def text_bits_per_byte(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Iterable[str],
    *,
    context: int | None = None,
    overlap: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Measure bits per byte on texts, such that models with different tokenizers can be compared.

    Each text is measured by itself, whole, and divided by its own UTF-8 bytes. It begins behind the tokenizer's
    beginning-of-text token (or end-of-text token, where there is none), which is read and not predicted. A text longer
    than the context is read in windows of `context` tokens; every window but the first begins with `overlap` tokens
    that were predicted before and now only are context, besides the one that stands before the first new token. So
    each token is predicted once, from at least `overlap` + 1 tokens before it, or all there are. Models are comparable
    where context and overlap span about as many bytes.

    Args:
        model: A causal language model; it is left in the mode that it was in.
        tokenizer: Its tokenizer.
        texts: The texts.
        context: Tokens per window; None takes the model's largest number of positions.
        overlap: Tokens that windows share; None takes half the context.
        batch_size: Windows per forward pass, at most; None for 8 on a CPU, elsewhere for as many as the device's
            memory allows. It changes the time and, but for rounding, not the result.
        progress: Show a bar.

    Returns:
        `loss` (nats per predicted token), `bits_per_byte`, `tokens` (predicted), `bytes` (of the texts).

    Raises:
        ValueError: The tokenizer loses text or has no token to begin with, the overlap leaves no place for new
            tokens, or there is no text, or one in the place of several.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from hf_progressive.data import train_tokenizer
    >>> tokenizer = train_tokenizer(["a rung grows from the rung below"], vocab_size=260, training_bytes=100)
    >>> config = GPT2Config(n_embd=8, n_head=2, n_layer=1, n_positions=8, vocab_size=len(tokenizer))
    >>> text_bits_per_byte(GPT2LMHeadModel(config), tokenizer, ["a rung", "and more"], progress=False)["bytes"]
    14
    """
    require_in_memory(model)
    if isinstance(texts, str):
        raise ValueError("texts: is one text, whose letters would be measured one by one; give a list")
    size = getattr(model.config.get_text_config(), "max_position_embeddings", None) if context is None else context
    if size is None:
        raise ValueError(
            f"context: {type(model).__name__} states no largest number of positions; give context=2048, say"
        )
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give at least 1, or None")
    shared = size // 2 if overlap is None else overlap
    if not 0 <= shared < size:
        raise ValueError(
            f"overlap: {shared} is not between 0 and {size - 1}, the context of {size} less one new token"
        )
    token_byte_lengths(tokenizer)  # refuses a tokenizer that loses text
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if start is None:
        raise ValueError("the tokenizer has neither a beginning-of-text nor an end-of-text token to begin a text with")
    nats, tokens, byte_count = [], 0, 0

    def windows() -> Iterator[_Window]:
        nonlocal tokens, byte_count
        for text in tqdm(texts, desc="Bits per byte", disable=None if progress else True):
            ids = encode_documents(tokenizer, [text])[0][:-1]
            tokens += len(ids)
            byte_count += len(text.encode("utf-8"))
            yield from cut_windows([start, *ids], size, shared)

    rows = windows()
    if batch_size is None:
        batch_size = sequences_that_fit(model, size, on_cpu=_CPU_SEQUENCES)
    with evaluation_mode(model):
        while batch := list(itertools.islice(rows, batch_size)):
            inputs, targets = _pad(batch)
            require_within_tables(model, inputs, "texts in windows of the context")
            nats += _summed_nats(model, inputs, targets)
    return _result(math.fsum(nats), tokens, byte_count)


@dataclass(frozen=True)
class _Window:
    """Part of a text: what the model reads, and how many of the last predictions count."""

    inputs: list[int]
    targets: list[int]
    new: int


def cut_windows(tokens: Sequence[int], size: int, overlap: int) -> Iterator[_Window]:
    """Cut a text into windows of at most `size` tokens that predict each token but the first exactly once.

    The first `overlap` tokens of a window, from the second on, are those that the one before it has predicted.

    >>> [(w.inputs, w.new) for w in cut_windows([0, 1, 2, 3, 4, 5, 6], size=4, overlap=1)]
    [([0, 1, 2, 3], 4), ([3, 4, 5], 2)]
    """
    done, last = 0, len(tokens) - 1
    while done < last:
        begin = max(0, done - overlap)
        end = min(begin + size, last)
        yield _Window(list(tokens[begin:end]), list(tokens[begin + 1 : end + 1]), end - done)
        done = end


def _pad(windows: Sequence[_Window]) -> tuple[Tensor, Tensor]:
    # Padding stands on the right, where a causal model does not see it, and is not predicted.
    width = max(len(window.inputs) for window in windows)
    inputs = torch.zeros(len(windows), width, dtype=torch.long)  # (B, T)
    targets = torch.full((len(windows), width), NOT_PREDICTED)  # (B, T)
    for row, window in enumerate(windows):
        length = len(window.inputs)
        inputs[row, :length] = torch.tensor(window.inputs)
        targets[row, length - window.new : length] = torch.tensor(window.targets[-window.new :])
    return inputs, targets


# Nats of a batch, or of the parts of it that memory suffices for.
def _summed_nats(model: PreTrainedModel, inputs: Tensor, targets: Tensor) -> list[float]:
    def compute(rows: Sequence[int]) -> float:
        some = slice(rows[0], rows[-1] + 1)
        return float(_token_nats(model, inputs[some], targets[some]).sum())

    return list(in_halves(compute, range(len(inputs))))


def _token_nats(model: PreTrainedModel, inputs: Tensor, targets: Tensor) -> Tensor:
    # Negative log-likelihood of each target, (B, T), float64 on the CPU; 0 where nothing is predicted.
    logits = model(input_ids=inputs.to(model.device), use_cache=False).logits  # (B, T, vocabulary)
    logits = logits.to(working_dtype(logits.dtype))
    nats = functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten().to(logits.device), ignore_index=NOT_PREDICTED, reduction="none"
    )
    return nats.view(targets.shape).cpu().double()


def _result(nats: float, tokens: int, byte_count: int) -> dict[str, float]:
    ratio = bits_per_byte_of_nats(nats, byte_count)
    return {"loss": nats / tokens, "bits_per_byte": ratio, "tokens": tokens, "bytes": byte_count}
