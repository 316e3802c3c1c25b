"""Measure whether a grown model computes what its parent computes.

Both models read the same random tokens in their stock classes, and their logits are compared: the largest difference
relative to the largest logit, and the Kullback-Leibler divergence of the predictions. Random tokens reach every row of
the embedding and every position, which text would not. Checkpoints are compared on an accelerator where there is one,
with float32 products computed exactly, and loaded one after the other where that takes less memory.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_progressive.config.ranges import class_of
from hf_progressive.distributed.batching import release_memory
from hf_progressive.growth.added_tokens import tokenizer_of
from hf_progressive.growth.source import locate_source
from hf_progressive.growth.stock_model import ModelSource, load_stock, readable, stock_logits, where_it_fits
from hf_progressive.hub.names import GROWTH
from hf_progressive.storage import ReadingFromOutside, read_json

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The largest difference of logits, in units of the largest logit, that counts as rounding. float64 and float32 are
dtypes of the arithmetic. The other two are dtypes of the grown weights alone: rounding a scaled weight once moves it
by 2⁻¹¹ or 2⁻⁸ of its size, whatever the arithmetic."""

_DOUBLE_BYTES = 8  # of a logit, as they are compared

_COMPUTED_IN = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class GrowthCheck:
    """How far the logits of a grown model are from its parent's.

    Args:
        max_abs_logit_diff: The largest difference of two logits.
        max_abs_logit: The largest logit of the parent, the scale of the above.
        kl: Mean over tokens of the Kullback-Leibler divergence of the child's prediction from the parent's, in nat.
        tolerance: The largest difference, in units of `max_abs_logit`, that counts as rounding.
        dtype: The dtype of the arithmetic.
        sequences: Number of token sequences compared.
        length: Tokens in each.
        new_token_loss: What old tokens' predictions lose to new tokens of a larger vocabulary, in nat per token: the
            mean of log(1 + Σ_new exp(logit) / Σ_old exp(logit)), by which their loss rises. Their logits are the
            parent's all the same.
        text_tokens: Tokens of the text on which `new_token_loss` was measured; 0 where it was on the random ones.
        new_token_loss_at_mean: `new_token_loss` as it would be, had `low_logits` not lowered the logits of new tokens;
            None where it did not.
    """

    max_abs_logit_diff: float
    max_abs_logit: float
    kl: float
    tolerance: float
    dtype: str
    sequences: int
    length: int
    new_token_loss: float = 0.0
    text_tokens: int = 0
    new_token_loss_at_mean: float | None = None

    @property
    def preserved(self) -> bool:
        """Whether the difference is no more than rounding."""
        return self.max_abs_logit_diff <= self.tolerance * self.max_abs_logit

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and `preserved`, for JSON."""
        return {**asdict(self), "preserved": self.preserved}

    def describe(self) -> str:
        """Return one line for a reader."""
        verdict = "preserved" if self.preserved else "NOT preserved"
        return (
            f"function {verdict}: max |Δlogit| {self.max_abs_logit_diff:.2e} at a scale of {self.max_abs_logit:.3g} "
            f"(relative tolerance {self.tolerance:.0e}), KL {self.kl:.1e} nat, {self.sequences} × {self.length} "
            f"random tokens in {self.dtype}" + (self._cost if self.new_token_loss else "")
        )

    @property
    def _cost(self) -> str:
        before = self.new_token_loss_at_mean
        lowered = "" if before is None else f" ({before:.2g} before their logits were lowered)"
        where = f"{self.text_tokens:,} tokens of the text" if self.text_tokens else "these (text=, --text: on a text)"
        return f"; old predictions lose {self.new_token_loss:.2g} nat a token to new tokens{lowered}, on {where}"


def verify_growth(
    source: ModelSource,
    grown: ModelSource,
    *,
    dtype: str = "float32",
    sequences: int = 4,
    max_length: int = 1024,
    seed: int = 0,
    revision: str | None = None,
    text: str | None = None,
) -> GrowthCheck:
    """Compare the logits of a model and of the one grown from it on random token sequences.

    Where the grown model knows more tokens, only the logits of the old ones are compared. What their predictions lose
    to the new ones, which is the rise of their loss, is measured on a text, if one is given.

    Args:
        source: The parent: a local folder, a Hub id, or a model, which is left as it is.
        grown: The child, likewise.
        dtype: `"float32"` or `"float64"`, the arithmetic of both models.
        sequences: Number of sequences, each compared by itself.
        max_length: Tokens in a sequence, at most; the parent's context if that is shorter.
        seed: Of the random tokens.
        revision: Revision of a parent on the Hub.
        text: A text of the kind that the parent knows. The parent's tokenizer makes up to `sequences` sequences of it.

    Returns:
        What was measured.

    Raises:
        FileNotFoundError: There is no such folder or repository.
        ValueError: `dtype` is neither of the two, a count not positive, a checkpoint is damaged or not of its config,
            the grown model knows fewer tokens or has a shorter context than its parent, logits are not finite, or
            there is a text and no tokenizer beside the parent, or no token in it.
        MemoryError: The CPU's memory does not suffice for the models.
        torch.OutOfMemoryError: Beside a model in memory, the logits do not fit on its device.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=1, n_positions=8, vocab_size=16))
    >>> verify_growth(model, model).preserved
    True
    """
    read = None
    if text is not None:
        if isinstance(source, PreTrainedModel):
            raise ValueError("text: a model in memory has no tokenizer; name the parent by its folder or Hub id")
        read = tokens_of(locate_source(source, revision).folder, text)
    return compare_logits(
        source, grown, dtype=dtype, sequences=sequences, max_length=max_length, seed=seed, revision=revision, read=read
    )


def rounds_weights(tolerance: float) -> bool:
    """Tell whether a check's tolerance is that of grown weights in a short dtype, and not of the arithmetic.

    >>> rounds_weights(5e-2), rounds_weights(1e-5)
    (True, False)
    """
    return tolerance > max(TOLERANCES[computed_in] for computed_in in _COMPUTED_IN.values())


def recorded_changes(grown: str | os.PathLike[str]) -> list[str]:
    """Return what its growth.json says that changes the function by design; nothing where a folder has none.

    Raises:
        ValueError: The record is damaged.
    """
    path = Path(grown) / GROWTH
    if not path.is_file():
        return []
    with ReadingFromOutside(str(path), "grow the checkpoint again"):
        return [str(change) for change in read_json(path)["plan"].get("changes", ())]


def compare_logits(
    source: ModelSource,
    grown: ModelSource,
    *,
    dtype: str,
    sequences: int = 4,
    max_length: int,
    seed: int = 0,
    revision: str | None = None,
    read: Tensor | None = None,
    put_back: Callable[[PreTrainedModel], None] | None = None,
) -> GrowthCheck:
    """Compare as `verify_growth` does, with the tokens of a text, (length,), in place of the text.

    `put_back` changes the child's new rows to those that they are compared with: `new_token_loss_at_mean` is theirs.
    """
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in _COMPUTED_IN:
        raise ValueError(f"dtype is {dtype!r}; growth is verified in {' or '.join(_COMPUTED_IN)}")
    for name, count in (("sequences", sequences), ("max_length", max_length)):
        if count < 1:
            raise ValueError(f"{name} is {count}; at least 1 is needed to compare anything")
    for model, commit in ((source, revision), (grown, None)):  # what cannot be compared is said before it is loaded
        if not isinstance(model, PreTrainedModel):
            readable(model, commit)
    compare = functools.partial(
        _compare,
        source,
        grown,
        _COMPUTED_IN[dtype],
        sequences=sequences,
        max_length=max_length,
        seed=seed,
        revision=revision,
        read=read,
        put_back=put_back,
    )
    return where_it_fits(compare, "both models")


def _compare(
    source: ModelSource,
    grown: ModelSource,
    computed_in: torch.dtype,
    device: torch.device,
    *,
    sequences: int,
    max_length: int,
    seed: int,
    revision: str | None,
    read: Tensor | None,
    put_back: Callable[[PreTrainedModel], None] | None,
) -> GrowthCheck:
    parent, _ = load_stock(source, computed_in, device, revision)
    vocabulary, context = _vocabulary(parent), _context(parent)
    length, generator = min(context, max_length), torch.Generator().manual_seed(seed)
    drawn = [torch.randint(vocabulary, (1, length), generator=generator) for _ in range(sequences)]  # (1, length) each
    expected_of: Callable[[Tensor], Tensor] = functools.partial(stock_logits, parent)
    if not isinstance(source, PreTrainedModel) and _nbytes(parent) > sequences * length * vocabulary * _DOUBLE_BYTES:
        # Where its logits are smaller than the model, it goes before the child comes.
        kept = [expected_of(tokens).cpu() for tokens in drawn]
        del parent
        expected_of = functools.partial(_taken, kept)
        release_memory()
    child, stored_in = load_stock(grown, computed_in, device, None)
    if _vocabulary(child) < vocabulary or _context(child) < context:
        raise ValueError(
            f"the grown model knows {_vocabulary(child)} tokens in a context of {_context(child)}, its parent "
            f"{vocabulary} in {context}; a child has no less than its parent"
        )
    total = torch.zeros((), dtype=torch.float64)
    largest = largest_difference = 0.0
    lost: list[Tensor] = []
    for tokens in drawn:
        everything = stock_logits(child, tokens)  # (length, V')
        actual = everything[:, :vocabulary]  # (length, V)
        lost.append(_lost(everything, vocabulary))
        expected = expected_of(tokens).to(actual.device)  # (length, V)
        largest = max(largest, expected.abs().max().item())
        largest_difference = max(largest_difference, (actual - expected).abs().max().item())
        total += _divergence(expected, actual).cpu()
    blocks = [] if read is None else [block[None] for block in torch.split(read, length)[:sequences]]
    if blocks:
        lost = [_lost(stock_logits(child, block), vocabulary) for block in blocks]
    at_mean = None
    if put_back is not None:
        put_back(child)
        before = [_lost(stock_logits(child, block), vocabulary) for block in blocks or drawn]
        at_mean = torch.cat(before).mean().item()
    return GrowthCheck(
        max_abs_logit_diff=largest_difference,
        max_abs_logit=largest,
        kl=total.item() / sequences,
        tolerance=max(TOLERANCES[computed_in], TOLERANCES[stored_in]),
        dtype=str(computed_in).removeprefix("torch."),
        sequences=sequences,
        length=length,
        new_token_loss=torch.cat(lost).mean().item(),
        text_tokens=sum(block.numel() for block in blocks),
        new_token_loss_at_mean=at_mean,
    )


# By how much the loss of old tokens is higher than without the new ones: (length, V') to (length,).
def _lost(logits: Tensor, vocabulary: int) -> Tensor:
    return logits.logsumexp(-1) - logits[:, :vocabulary].logsumexp(-1)


def tokens_of(folder: Path, text: str) -> Tensor:
    """Return a text's tokens, (length,), by a checkpoint's tokenizer; a text without any is a ValueError."""
    if not isinstance(text, str):
        raise ValueError(f"text is {class_of(text)}; give the text itself")
    tokens: list[int] = tokenizer_of(folder, "to read the text with")(text)["input_ids"]
    if not tokens:
        raise ValueError("text: there is no token in it")
    return torch.tensor(tokens)


def _nbytes(model: PreTrainedModel) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def _taken(kept: list[Tensor], tokens: Tensor) -> Tensor:
    return kept.pop(0)


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _context(model: PreTrainedModel) -> int:
    return int(model.config.max_position_embeddings)


# KL(expected ‖ actual) in nat, mean over tokens.
def _divergence(expected: Tensor, actual: Tensor) -> Tensor:
    log_p, log_q = expected.log_softmax(-1), actual.log_softmax(-1)  # (length, V)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()
