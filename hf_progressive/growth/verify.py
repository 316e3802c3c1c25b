"""Measure whether a grown model computes what its parent computes.

Both models read the same random tokens in their stock classes, and their logits are compared: the largest difference
relative to the largest logit, and the Kullback-Leibler divergence of the predictions. Random tokens reach every row of
the embedding and every position, which text would not. Checkpoints are compared on an accelerator where there is one,
with float32 products computed exactly, and loaded one after the other where that takes less memory.
"""

import contextlib
import copy
import functools
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_progressive.distributed.batching import release_memory
from hf_progressive.distributed.evaluation_mode import evaluation_mode
from hf_progressive.distributed.float32_products import float32_products
from hf_progressive.growth.added_tokens import tokenizer_of
from hf_progressive.growth.reader import CheckpointReader, is_finite
from hf_progressive.growth.source import locate_source

logger = logging.getLogger(__name__)

ModelSource: TypeAlias = str | os.PathLike[str] | PreTrainedModel
"""A local folder, a Hub id or a model in memory."""

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
            f"random tokens in {self.dtype}"
            + (f"; new tokens cost {self.new_token_loss:.2g} nat a token, {self._read}" if self.new_token_loss else "")
        )

    @property
    def _read(self) -> str:
        return (
            f"on {self.text_tokens:,} tokens of the text" if self.text_tokens else "on these; on a text it is another"
        )


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
        ValueError: `dtype` is neither of the two, a count is not positive, a checkpoint is damaged, the grown model
            knows fewer tokens or has a shorter context than its parent, logits are not finite, or there is a text
            and no tokenizer beside the parent, or no token in it.
        torch.OutOfMemoryError: Beside a model in memory, the logits do not fit on its device.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=1, n_positions=8, vocab_size=16))
    >>> verify_growth(model, model).preserved
    True
    """
    if dtype not in _COMPUTED_IN:
        raise ValueError(f"dtype is {dtype!r}; growth is verified in {' or '.join(_COMPUTED_IN)}")
    for name, count in (("sequences", sequences), ("max_length", max_length)):
        if count < 1:
            raise ValueError(f"{name} is {count}; at least 1 is needed to compare anything")
    computed_in, device = _COMPUTED_IN[dtype], _device()
    read = None if text is None else _tokenized(source, text, revision)
    compare = functools.partial(
        _compare,
        source,
        grown,
        computed_in,
        sequences=sequences,
        max_length=max_length,
        seed=seed,
        revision=revision,
        read=read,
    )
    with float32_products(tf32=False):
        try:
            return compare(device)
        except torch.OutOfMemoryError:
            if device.type == "cpu":
                raise
        release_memory()
        logger.info("not enough memory for both models on %s; verifying on the CPU", device)
        return compare(torch.device("cpu"))


def _device() -> torch.device:
    wants_cpu = parse_flag_from_env("ACCELERATE_USE_CPU", default=False)
    return torch.device("cuda" if torch.cuda.is_available() and not wants_cpu else "cpu")


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
) -> GrowthCheck:
    parent, _ = _load(source, computed_in, device, revision)
    vocabulary, context = _vocabulary(parent), _context(parent)
    length, generator = min(context, max_length), torch.Generator().manual_seed(seed)
    drawn = [torch.randint(vocabulary, (1, length), generator=generator) for _ in range(sequences)]  # (1, length) each
    expected_of: Callable[[Tensor], Tensor] = functools.partial(_logits, parent)
    if not isinstance(source, PreTrainedModel) and _nbytes(parent) > sequences * length * vocabulary * _DOUBLE_BYTES:
        # Where its logits are smaller than the model, it goes before the child comes.
        kept = [expected_of(tokens).cpu() for tokens in drawn]
        del parent
        expected_of = functools.partial(_taken, kept)
        release_memory()
    child, stored_in = _load(grown, computed_in, device, None)
    if _vocabulary(child) < vocabulary or _context(child) < context:
        raise ValueError(
            f"the grown model knows {_vocabulary(child)} tokens in a context of {_context(child)}, its parent "
            f"{vocabulary} in {context}; a child has no less than its parent"
        )
    total = torch.zeros((), dtype=torch.float64)
    largest = largest_difference = lost = 0.0
    for tokens in drawn:
        everything = _logits(child, tokens)  # (length, V')
        actual = everything[:, :vocabulary]  # (length, V)
        lost += _lost(everything, vocabulary).mean().item()
        expected = expected_of(tokens).to(actual.device)  # (length, V)
        largest = max(largest, expected.abs().max().item())
        largest_difference = max(largest_difference, (actual - expected).abs().max().item())
        total += _divergence(expected, actual).cpu()
    blocks = () if read is None else torch.split(read, length)[:sequences]
    if blocks:
        lost = (
            sequences * torch.cat([_lost(_logits(child, block[None]), vocabulary) for block in blocks]).mean().item()
        )
    return GrowthCheck(
        max_abs_logit_diff=largest_difference,
        max_abs_logit=largest,
        kl=total.item() / sequences,
        tolerance=max(TOLERANCES[computed_in], TOLERANCES[stored_in]),
        dtype=str(computed_in).removeprefix("torch."),
        sequences=sequences,
        length=length,
        new_token_loss=lost / sequences,
        text_tokens=sum(len(block) for block in blocks),
    )


# By how much the loss of old tokens is higher than without the new ones: (length, V') to (length,).
def _lost(logits: Tensor, vocabulary: int) -> Tensor:
    return logits.logsumexp(-1) - logits[:, :vocabulary].logsumexp(-1)


# The parent's tokens of a text: (length,).
def _tokenized(source: ModelSource, text: str, revision: str | None) -> Tensor:
    if isinstance(source, PreTrainedModel):
        raise ValueError("text: a model in memory has no tokenizer; name the parent by its folder or Hub id")
    tokens: list[int] = tokenizer_of(locate_source(source, revision).folder, "to read the text with")(text)[
        "input_ids"
    ]
    if not tokens:
        raise ValueError("text: there is no token in it")
    return torch.tensor(tokens)


# The model with its arithmetic in `dtype`, and the dtype its weights had before, the shortest where they differ. One
# that is not in memory yet goes on the device.
def _load(
    source: ModelSource, dtype: torch.dtype, device: torch.device, revision: str | None
) -> tuple[PreTrainedModel, torch.dtype]:
    if not isinstance(source, PreTrainedModel):
        located = locate_source(source, revision)
        specs = CheckpointReader(located.folder).specs.values()  # says what is wrong with weights that are damaged
        # The file's own, not the configuration's: "auto" would round a float32 file under a bfloat16 configuration.
        floating = [spec.dtype for spec in specs if spec.dtype.is_floating_point]
        stored_in = min(floating, key=lambda each: torch.finfo(each).bits, default=dtype)
        model = AutoModelForCausalLM.from_pretrained(located.folder, config=located.read_config(), dtype=dtype)
        return model.to(device, dtype), stored_in
    # Some buffers, such as rotary frequencies, stay in float32 beside weights in float64.
    values = (value for value in (*source.parameters(), *source.buffers()) if value.is_floating_point())
    return source if all(value.dtype == dtype for value in values) else copy.deepcopy(source).to(dtype), source.dtype


def _nbytes(model: PreTrainedModel) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def _taken(kept: list[Tensor], tokens: Tensor) -> Tensor:
    return kept.pop(0)


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _context(model: PreTrainedModel) -> int:
    return int(model.config.max_position_embeddings)


_PRODUCTS = (Tensor.__matmul__, Tensor.matmul, torch.matmul)


class _KeepFloat64(TorchFunctionMode):
    """Keep float64 tensors what they are where a model asks for float32, as stock RMS norms do inside."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
            kwargs = {name: torch.float64 if arg is torch.float32 else arg for name, arg in kwargs.items()}
            if func in _PRODUCTS:  # alone of the operations they do not take the wider type of the two
                args = tuple(arg.double() if isinstance(arg, Tensor) else arg for arg in args)
        return func(*args, **kwargs)


@contextlib.contextmanager
def _experts_one_by_one(model: PreTrainedModel) -> Iterator[None]:
    # The fused kernels know neither float64 nor every width.
    chosen = model.get_experts_implementation()
    if not model._can_set_experts_implementation():
        yield
        return
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(chosen)


def _logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    with evaluation_mode(model), _experts_one_by_one(model), _KeepFloat64():
        logits: Tensor = model(input_ids=tokens.to(model.device), use_cache=False).logits
    if not is_finite(logits):
        raise ValueError(f"the logits of {model.name_or_path or type(model).__name__} are not finite; it is damaged")
    return logits[0].double()  # (length, V)


# KL(expected ‖ actual) in nat, mean over tokens.
def _divergence(expected: Tensor, actual: Tensor) -> Tensor:
    log_p, log_q = expected.log_softmax(-1), actual.log_softmax(-1)  # (length, V)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()
