"""Diagonal Fisher information of a model, from per-sample gradients.

With the negative log-likelihood ℓ_nt of token t of sequence n, T_n tokens in it and everything squared entry by entry,

- `definition="token"` is  Ω = Σ_n Σ_t (∇ ℓ_nt)² / Σ_n T_n,  the information of single tokens given what precedes them;
- `definition="sequence"` is  Ω = Σ_n (∇ Σ_t ℓ_nt)² / Σ_n T_n,  the information of whole sequences, per token.

In other tasks, n is an example and t one of its targets, each of which has a distribution of its own: the masked
tokens; the tokens' classes; the class of a text or an image, which is one target; the start and the end of an answer;
each yes or no of several labels; each number of a regression, whose squared error is the negative log-likelihood of a
normal distribution of variance ½; the tokens that a decoder predicts. The mean of an example's ℓ_nt is the loss that
the model itself gives it.

Definitions differ in the products of different targets' gradients. Where targets are sampled (`kind="true"`) these
products have mean 0 and both definitions estimate one thing. Where targets are the data's own, each target's gradient
gets a random sign before the sum over the example is squared. The mean of that is the token definition (the random
signs of curvature propagation: Martens, Sutskever & Swersky 2012, https://arxiv.org/abs/1206.6464), at the price of
one backward pass instead of T_n.

Both are in nat² per token over squared weight, so that ½ Σ_i Ω_i ΔW_i² compares with a loss in nats per token, and
λ = 1 weighs a step from the parent as the parent's own loss does, to second order. That was checked on GPT-2s of 0.12,
0.37 and 0.84 M parameters (`examples/benchmarks/fisher_scale.py`): for random moves of all weights, the predicted over
the measured increase of the loss was 1.11, 0.96, 0.94 by the token definition (1.11, 0.97, 0.97 with sampled targets)
and 2.64, 1.57, 1.46 by the sequence definition, while the mean entry of Ω fell from 9.4e-3 to 1.3e-3. Hence the
defaults: tokens, and no normalization, with which λ would mean another thing on every rung.

A loss that is itself a mean over the T tokens of a block, as `model(labels=...).loss` is, has squares 1/T² as large
as the sum's: their mean over blocks of equal length is the sequence definition here divided by T.

The average gradient must not be taken before the square: (Σ_n g_n / N)² is the square of a mean, which vanishes where
training has converged and in expectation falls as 1/N with the size of the batch, while the Fisher information, the
mean of squares Σ_n g_n² / N, does neither.
"""

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from hf_progressive.distributed.compilation import uncompiled
from hf_progressive.distributed.evaluation_mode import evaluation_mode
from hf_progressive.distributed.model_in_memory import require_in_memory
from hf_progressive.distributed.working_dtype import summing_dtype
from hf_progressive.estimation.batch_reader import BatchReader
from hf_progressive.estimation.hooks import UnfitLayerError
from hf_progressive.estimation.likelihood import ExampleBatch, LabelKind, SequenceBatch, sampling_generator
from hf_progressive.estimation.loss_callable import Loss
from hf_progressive.estimation.per_sample import PerSampleSquares
from hf_progressive.estimation.sharded_sums import sum_over_processes, whole_tensor
from hf_progressive.penalty.quantized import require_plain_parameters

logger = logging.getLogger(__name__)

Definition = Literal["sequence", "token"]
"""Which gradients are squared: those of whole sequences, or those of single tokens."""


def estimate_fisher(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    loss: Loss | None = None,
    kind: LabelKind = "empirical",
    definition: Definition = "token",
    normalize: Literal["mean"] | None = None,
    batched: bool = True,
    reduce: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Estimate the diagonal of a model's Fisher information.

    Args:
        model: A model of Transformers for causal or masked language modelling, sequence-to-sequence, classification of
            sequences, tokens, images, audio or video, multiple choice or question answering; or any module, with
            `loss`. On any device and in any floating dtype. A module of no Transformers class is taken as a causal
            language model.
        batches: What a data loader yields, examples in front. For a causal language model, token ids (B, T), or
            mappings with `input_ids` and optionally `labels` and `attention_mask`. For another model of Transformers,
            mappings of what it takes, its labels among them: -100 where there is no target. For `loss`, anything made
            of tensors. The size of a batch does not change the result.
        loss: For a module of any kind, a function of model and batch that returns the loss of each example in nats,
            (B,), or of each target of an example, (B, T), unreduced; or a pair of these and of where they count,
            (B, T). An example's loss must depend on that example alone.
        kind: "empirical" takes the data's own labels as targets, as Kirkpatrick et al. (2017,
            https://arxiv.org/abs/1612.00796) and most uses of elastic weight consolidation do; "true" samples each
            target from the model's distribution, which makes this an estimate of the Fisher information itself
            (the difference: Kunstner et al. 2019, https://arxiv.org/abs/1905.12558). It needs no labels where these
            do not say which targets there are, as those of a masked language model do.
        definition: Whose gradients are squared, single tokens' or whole sequences', or the targets' and examples' of
            another task; see the module's first lines.
        normalize: None keeps nats, so that λ means the same on every rung; "mean" divides everything by the mean over
            all entries of all parameters.
        batched: Compute the per-sample gradients of a batch together. Otherwise, one backward pass per example. So it
            is, with a warning, where a model's layers do not tell examples apart.
        reduce: Sum over the processes of `torch.distributed`, each of which was given its own sequences. Where FSDP2
            or ZeRO-3 divides the model this is always so; it must then be a causal language model, and each process
            must have as many batches as the others.
        seed: For sampled targets and random signs.
        progress: Show a progress bar on stderr.

    Returns:
        A non-negative tensor for each name of `model.named_parameters()`, of the parameter's shape and on its device,
        in float32 (float64 for a float64 model); of a divided model, a DTensor. A tied weight appears once; its uses
        add up before the square. Frozen parameters are included.

    Raises:
        ValueError: There is no target, an option is unknown, a batch does not fit, a gradient is not finite, or it is
            not known what the model's targets are (its own loss is compared, on one example); or weights are packed
            integers, as quantization leaves them.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> sizes = {"n_layer": 1, "n_embd": 8, "n_head": 1, "vocab_size": 32}
    >>> model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None))
    >>> fisher = estimate_fisher(model, [torch.arange(32).view(4, 8)])
    >>> fisher["transformer.h.0.mlp.c_fc.weight"].shape
    torch.Size([8, 32])
    """
    _check_options(kind, definition, normalize)
    if batches is None:
        raise ValueError("batches is None; give batches of token ids, such as a DataLoader")
    require_in_memory(model)
    require_plain_parameters(model)
    squares = PerSampleSquares(model)
    if squares.divided and not batched:
        raise ValueError("the model is divided among processes, which needs batched=True; or gather it first")
    reduce = reduce or squares.divided
    generator = sampling_generator(seed, apart=reduce)
    scored = _SignedLosses(model, kind=kind, definition=definition, generator=generator)
    device = next(model.parameters()).device
    read = BatchReader(model, loss=loss, kind=kind)
    compared = False
    with uncompiled(model), evaluation_mode(model, gradients=True), _all_trainable(model):
        for item in tqdm(batches, desc="Fisher", unit="batch", disable=None if progress else True):
            batch = read(item, device)
            if squares.divided and not isinstance(batch, SequenceBatch):
                raise ValueError("the model is divided among processes and no causal language model; gather it first")
            compared = compared or squares.divided or read.compare_with_own_loss(batch)
            if batched and _add_together(squares, batch, scored):
                continue
            batched = batched and squares.batches > 0
            for example in batch.split():
                squares.add_one(scored(example).sum())
    count = scored.target_count(device)
    if reduce:
        sum_over_processes([count, *squares.totals.values()])
    return _finished(squares.totals, int(count), normalize)


class _SignedLosses:
    """The scalar of each example whose gradient is squared, and the number of targets behind all of them."""

    def __init__(self, model: nn.Module, *, kind: LabelKind, definition: Definition, generator: torch.Generator):
        self._model, self._kind, self._generator = model, kind, generator
        self._signed = definition == "token" and kind == "empirical"
        self._counts: list[Tensor] = []

    def __call__(self, batch: ExampleBatch) -> Tensor:
        nll, counted = batch.losses(self._model, self._kind, self._generator)  # (B, K)
        self._counts.append(counted.sum())
        if self._signed:
            places = batch.drawn_places() if isinstance(batch, SequenceBatch) else counted.cpu()
            signs = torch.zeros(places.shape, dtype=torch.long)
            signs[places] = 2 * torch.randint(2, (int(places.sum()),), generator=self._generator) - 1
            nll = nll * signs.to(nll)  # products of different targets' gradients vanish on average
        return nll.sum(1)  # (B,)

    def target_count(self, device: torch.device) -> Tensor:
        return torch.stack(self._counts).sum().to(device) if self._counts else torch.tensor(0, device=device)

    def mark(self) -> tuple[int, Tensor]:
        return len(self._counts), self._generator.get_state()

    def go_back(self, mark: tuple[int, Tensor]) -> None:
        del self._counts[mark[0] :]
        self._generator.set_state(mark[1])


def _add_together(squares: PerSampleSquares, batch: ExampleBatch, scored: _SignedLosses) -> bool:
    # False, with nothing added, if the model does not lend itself to it.
    mark = scored.mark()
    try:
        squares.add_together(len(batch), lambda: scored(batch), layout=batch.layout)
    except UnfitLayerError as error:
        if squares.divided:
            raise ValueError(f"{error}; gather the model, which is divided among processes, and try again") from error
        if squares.batches and squares.is_spoilt:
            raise ValueError(f"{error}, though earlier batches went well; pass batched=False") from error
        logger.warning("taking per-sample gradients one by one, which is slower: %s", error)
        if squares.is_spoilt:
            for total in squares.totals.values():
                total.zero_()
        scored.go_back(mark)
        return False
    return True


def _finished(totals: dict[str, Tensor], tokens: int, normalize: str | None) -> dict[str, Tensor]:
    if tokens == 0:
        raise ValueError(
            "the batches hold no target token; give at least one sequence of two tokens, or one label that counts"
        )
    sums = {name: float(whole_tensor(total.sum(dtype=summing_dtype(total.device)))) for name, total in totals.items()}
    for name, value in sums.items():
        if not math.isfinite(value):
            raise ValueError(f"the Fisher information of {name} is not finite; check the checkpoint and the data")
    scale = math.fsum(sums.values()) / sum(t.numel() for t in totals.values()) if normalize == "mean" else tokens
    if scale == 0:
        raise ValueError("every gradient is zero, so that there is no mean to divide by; pass normalize=None")
    for total in totals.values():
        total /= scale
    return totals


@contextlib.contextmanager
def _all_trainable(model: nn.Module) -> Iterator[None]:
    """Let every parameter require a gradient within the block, frozen ones too."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _check_options(kind: str, definition: str, normalize: str | None) -> None:
    for option, value, allowed in (
        ("kind", kind, ("empirical", "true")),
        ("definition", definition, ("sequence", "token")),
        ("normalize", normalize, (None, "mean")),
    ):
        if value not in allowed:
            raise ValueError(f"{option} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")


def fisher_flops(*, tokens: int, sequences: int, parameters: int, training_flops_per_token: float) -> float:
    """Count the floating-point operations of an estimate.

    The per-sample gradients of a batch cost what its summed gradient costs, so forward and backward count as in
    training; squaring and adding up takes 2 operations per parameter and sequence more. Padding counts as tokens read.

    >>> fisher_flops(tokens=1000, sequences=10, parameters=50, training_flops_per_token=300.0)
    301000.0
    """
    return training_flops_per_token * tokens + 2 * parameters * sequences
