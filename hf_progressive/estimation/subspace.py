"""An orthonormal basis of the output side of each weight matrix.

The inheritance penalty leaves changes within span(U) free and restrains the rest, Tr((I − P) ΔW ΔWᵀ (I − P)ᵀ) with
P = U Uᵀ and ΔW taken as (out × in), a convolution's as (out × in·kernel). U holds the leading eigenvectors of a
symmetric (out × out) matrix:

- `source="weights"`: W Wᵀ, that is, the leading left singular vectors of W;
- `source="gradients"`: Σ g gᵀ over tokens, g the gradient of the summed loss with respect to the layer's output; the
  Kronecker factor G of K-FAC (Martens & Grosse 2015, https://arxiv.org/abs/1503.05671, section 3), not centred;
- `source="activations"`: Σ y yᵀ over tokens, y the layer's output, not centred.
"""

import fnmatch
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers.pytorch_utils import Conv1D

from hf_progressive.distributed.compilation import uncompiled
from hf_progressive.distributed.evaluation_mode import evaluation_mode
from hf_progressive.distributed.model_in_memory import require_in_memory
from hf_progressive.distributed.working_dtype import summing_dtype, working_dtype
from hf_progressive.estimation.batch_reader import BatchReader
from hf_progressive.estimation.hooks import gradient_hooks, kept_gradients, output_hooks, untracked_parameters
from hf_progressive.estimation.likelihood import ExampleBatch, LabelKind, sampling_generator
from hf_progressive.estimation.loss_callable import Loss
from hf_progressive.estimation.sharded_sums import sum_over_processes, whole_tensor
from hf_progressive.penalty.shards import whole_shape
from hf_progressive.penalty.validation import weight_output_dimension

SubspaceSource = Literal["weights", "gradients", "activations"]
"""What a layer's subspace is learned from."""

RANDOMIZED_ABOVE = 1024
"""Both sides of a matrix must be longer than this before its singular vectors are computed by random projection."""

_CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d

_OVERSAMPLING = 10  # Halko et al. 2011, section 4.2: 5 to 10 are enough
_POWER_ITERATIONS = 4
_FIRST_SKETCH = 128


def _weighted_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the module of every weight that has an output side, by the weight's name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, nn.Module] = {}
    for module in model.modules():
        weight = dict(module.named_parameters(recurse=False)).get("weight")  # a parametrized layer has none
        if isinstance(module, nn.Linear | Conv1D | nn.Embedding | _CONVOLUTIONS) and weight is not None:
            found.setdefault(names[id(weight)], module)
    return found


def select_weights(model: nn.Module, patterns: Sequence[str] | str | None = None) -> dict[str, nn.Module]:
    """Choose the weights that get a subspace.

    The default is every `Linear` and `Conv1D` weight, and every convolution's, except the language-model head.
    Embedding and head are left out because their rows belong to single tokens: a rare token's row hardly shapes the
    leading directions and would be held still for that alone, and a tied matrix has two output sides, its features
    and its vocabulary. `patterns` are globs over parameter names, as `fnmatch` reads them, in place of the default.

    Layers come by their weight's name, in the model's order.
    """
    modules = _weighted_modules(model)
    if patterns is None:
        head = getattr(model, "get_output_embeddings", lambda: None)()
        return {n: m for n, m in modules.items() if not isinstance(m, nn.Embedding) and m is not head}
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not patterns:
        raise ValueError("parameters: there is no pattern; name some, or leave it out for the default choice")
    for pattern in patterns:
        if not fnmatch.filter(modules, pattern):
            raise ValueError(
                f"the pattern {pattern!r} matches no Linear, Conv1D, Embedding or convolution weight;"
                f" names look like {next(iter(modules), 'nothing: the model has none')!r}"
            )
    return {n: m for n, m in modules.items() if any(fnmatch.fnmatchcase(n, p) for p in patterns)}


def learn_subspace(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    source: SubspaceSource = "weights",
    loss: Loss | None = None,
    energy: float = 0.95,
    rank: int | None = None,
    parameters: Sequence[str] | str | None = None,
    kind: LabelKind = "empirical",
    reduce: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Learn an orthonormal basis of the output side of each weight matrix.

    Args:
        model: A model as `estimate_fisher` takes it; for weights, any module.
        batches: For gradients and activations, batches as `estimate_fisher` takes them. No data are stored: each layer
            adds up one (out, out) matrix.
        source: What the subspace is learned from; see the module's first lines. Of a convolution, each place of its
            output is a token.
        loss: For gradients and activations of a module of any kind, as `estimate_fisher` takes it.
        energy: The rank is the smallest that holds this share of the trace (of the squared singular values).
        rank: A fixed rank in place of `energy`; where a matrix has fewer directions, all of them.
        parameters: Glob patterns over parameter names in place of the default choice of `select_weights`.
        kind: For gradients, targets from the data ("empirical") or sampled from the model ("true").
        reduce: Sum over the processes of `torch.distributed`, each of which was given its own sequences.
        seed: For random projections and sampled targets.
        progress: Show a progress bar on stderr.

    Returns:
        U of shape (out, r) for the name of each chosen weight, r ≥ 0, in float32 (float64 for a float64 model), on the
        weight's device. A matrix of zeros has r = 0.

    Raises:
        ValueError: An option is out of range, batches are missing, or a matrix is not finite.
    """
    require_in_memory(model)
    _check_options(source, energy, rank, batches is not None)
    chosen = select_weights(model, parameters)
    if source == "weights":
        matrices: Iterable[tuple[str, Tensor]] = ((name, _output_by_input(m)) for name, m in chosen.items())
    else:
        assert batches is not None
        matrices = output_covariances(
            model, batches, chosen, source=source, loss=loss, kind=kind, reduce=reduce, seed=seed, progress=progress
        ).items()
    bases = {}
    for name, matrix in tqdm(
        matrices, desc="subspace", total=len(chosen), unit="matrix", disable=None if progress else True
    ):
        if not matrix.isfinite().all():
            raise ValueError(f"the {source} of {name} are not finite; check the checkpoint and the data")
        bases[name] = leading_directions(matrix, energy=energy, rank=rank, covariance=source != "weights", seed=seed)
    return bases


def _check_options(source: str, energy: float, rank: int | None, has_batches: bool) -> None:
    if source not in ("weights", "gradients", "activations"):
        raise ValueError(f"source is {source!r}; it must be 'weights', 'gradients' or 'activations'")
    if source != "weights" and not has_batches:
        raise ValueError(f"source={source!r} needs batches of token ids; give them, or learn from the weights")
    if not 0 < energy <= 1:
        raise ValueError(f"energy is {energy}; it must be above 0 and at most 1")
    if rank is not None and rank < 1:
        raise ValueError(f"rank is {rank}; it must be at least 1")


def _output_by_input(module: nn.Module) -> Tensor:
    """Return a layer's weight as an (out, in) matrix, gathered if it is sharded, in at least float32."""
    weight = whole_tensor(module.get_parameter("weight"))
    weight = weight.to(working_dtype(weight.dtype)).flatten(1)
    return weight if weight_output_dimension(module) == 0 else weight.T


def leading_directions(
    matrix: Tensor, *, energy: float = 0.95, rank: int | None = None, covariance: bool = False, seed: int = 0
) -> Tensor:
    """Return the leading left singular vectors of a matrix.

    A matrix with a side of at most `RANDOMIZED_ABOVE` is decomposed exactly. A larger one is first sketched by random
    projection with power iterations (Halko, Martinsson & Tropp 2011, https://arxiv.org/abs/0909.4061, algorithm 5.1,
    as `torch.svd_lowrank` has it); while the sketch holds too little energy it is doubled, and a matrix whose
    spectrum turns out flat is decomposed exactly after all.

    Args:
        matrix: (out, in), or a symmetric positive semi-definite (out, out).
        energy: Share of the total the vectors must hold: of the sum of squared singular values, or of the trace.
        rank: A fixed number of vectors instead.
        covariance: The matrix is symmetric, and its eigenvalues are energies already.
        seed: For the random projection; torch's global generators are left as they were.

    Returns:
        Orthonormal columns, (out, r).

    >>> leading_directions(torch.diag(torch.tensor([1.0, 3.0, 0.1])), energy=0.85).abs()
    tensor([[0.],
            [1.],
            [0.]])
    """
    total = float(matrix.trace() if covariance else matrix.square().sum())
    if total == 0:
        return matrix.new_zeros(matrix.shape[0], 0)
    shortest = min(matrix.shape)
    sketch = _FIRST_SKETCH if rank is None else rank + _OVERSAMPLING
    while shortest > RANDOMIZED_ABOVE and 2 * sketch < shortest:
        left, energies = _sketched(matrix, sketch, covariance, seed)
        if rank is not None or float(energies.sum()) >= energy * total:
            return left[:, : _rank(energies, energy, rank, total)].contiguous()
        sketch *= 2
    left, energies = _decomposed(matrix, covariance)
    return left[:, : _rank(energies, energy, rank, total)].contiguous()


def _sketched(matrix: Tensor, size: int, covariance: bool, seed: int) -> tuple[Tensor, Tensor]:
    """Return approximate left singular vectors, (out, size), and their energies, largest first."""
    with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
        torch.manual_seed(seed)
        left, values, _ = torch.svd_lowrank(matrix, q=size, niter=_POWER_ITERATIONS)
    return left, values if covariance else values.square()


def _decomposed(matrix: Tensor, covariance: bool) -> tuple[Tensor, Tensor]:
    """Return the left singular vectors and their energies, largest first."""
    if covariance:
        values, vectors = torch.linalg.eigh(matrix)  # smallest first, and below 0 by rounding
        return vectors.flip(1), values.flip(0).clamp_min(0)
    left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    return left, values.square()


def _rank(energies: Tensor, energy: float, rank: int | None, total: float) -> int:
    if rank is not None:
        return min(rank, len(energies))
    slack = len(energies) * torch.finfo(energies.dtype).eps  # the sum's rounding must not ask for one more direction
    below = energies.cumsum(0, dtype=summing_dtype(energies.device)) < (energy - slack) * total
    return min(int(below.sum()) + 1, len(energies))


def output_covariances(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Mapping[str, nn.Module],
    *,
    source: Literal["gradients", "activations"],
    loss: Loss | None = None,
    kind: LabelKind = "empirical",
    reduce: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Add up the uncentred covariance of layers' outputs, or of their gradients, over tokens: (out, out) per name.

    Of gradients, those of the summed negative log-likelihood; padding does not count. Options are `learn_subspace`'s.
    """
    first = next(model.parameters())
    dtype = working_dtype(first.dtype)
    sums = {}
    for module in layers.values():
        outputs = whole_shape(module.get_parameter("weight"))[weight_output_dimension(module)]
        sums[module] = torch.zeros(outputs, outputs, dtype=dtype, device=first.device)
    generator = sampling_generator(seed, apart=reduce)
    read = BatchReader(model, loss=loss, kind=kind)
    count = torch.zeros((), dtype=torch.long, device=first.device)  # of targets; of activations, of examples

    def add(module: nn.Module, rows: Tensor) -> None:
        rows = rows.flatten(0, -2).to(dtype)  # (tokens, out)
        torch.addmm(sums[module], rows.T, rows, out=sums[module])

    def add_unpadded(module: nn.Module, output: Tensor, mask: Tensor | None) -> None:
        add(module, _unpadded(module, output, mask))

    with uncompiled(model), evaluation_mode(model, gradients=source == "gradients"):
        for item in tqdm(batches, desc=source, unit="batch", disable=None if progress else True):
            batch = read(item, first.device)
            if source == "gradients":
                with (
                    kept_gradients(model),
                    untracked_parameters(model),
                    gradient_hooks(
                        sums, lambda layer, _, g, __: add(layer, _outputs_last(layer, g)), len(batch), apart=False
                    ),
                ):
                    losses, counted = batch.losses(model, kind, generator)
                    count += counted.sum().to(count.device)
                    torch.autograd.backward(losses.sum())
            else:
                mask = _output_mask(model, batch)
                count += len(batch)
                with output_hooks(sums, functools.partial(add_unpadded, mask=mask)):
                    batch.losses(model, "empirical", generator)
    if reduce:
        sum_over_processes([count, *sums.values()])
    if not count:
        raise ValueError(
            "the batches hold no target token; give at least one sequence of two tokens, or one label that counts"
        )
    return {name: sums[module] for name, module in layers.items()}


def _outputs_last(module: nn.Module, values: Tensor) -> Tensor:
    return values.movedim(1, -1) if isinstance(module, _CONVOLUTIONS) else values


def _output_mask(model: nn.Module, batch: ExampleBatch) -> Tensor | None:
    # Where outputs are those of tokens and not of padding, (B, T); None where all are.
    mask = batch.tokens()
    if mask is None or bool(mask.all()):
        return None
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(
            "source='activations' cannot tell padding apart in an encoder-decoder model; use source='gradients', "
            "where padding counts for nothing, or batches without padding"
        )
    return mask.bool()


def _unpadded(module: nn.Module, output: Tensor, mask: Tensor | None) -> Tensor:
    output = _outputs_last(module, output)
    if mask is None or output.ndim != 3:  # of no sequence, or pooled
        return output
    return output.expand(len(mask), -1, -1)[mask] if output.shape[1] == mask.shape[1] else output


def subspace_flops(
    model: nn.Module,
    *,
    source: SubspaceSource = "weights",
    parameters: Sequence[str] | str | None = None,
    tokens: int = 0,
    training_flops_per_token: float = 0.0,
) -> float:
    """Count the floating-point operations of learning a subspace, its decompositions taken as exact ones.

    An m × n matrix, m ≥ n, has its singular vectors for 6 m n² + 20 n³ operations, a symmetric n × n one its
    eigenvectors for 9 n³ (Golub & Van Loan 2013, chapter 8). Adding up a covariance takes 2 n² per token. Activations
    need a third of what forward and backward take in training, gradients at outputs two thirds (and all of attention's
    products of two activations, a small part that is left out). Padding counts as tokens read; weights need none.

    >>> subspace_flops(nn.Sequential(nn.Linear(10, 20)))
    32000.0
    """
    passes = {"weights": 0.0, "gradients": 2 / 3, "activations": 1 / 3}[source] * training_flops_per_token * tokens
    decompositions = 0.0
    for module in select_weights(model, parameters).values():
        whole = whole_shape(module.get_parameter("weight"))
        shape = whole[0], math.prod(whole[1:])
        outputs, longer, shorter = shape[weight_output_dimension(module)], max(shape), min(shape)
        if source == "weights":
            decompositions += 6 * longer * shorter**2 + 20 * shorter**3
        else:
            decompositions += 9 * outputs**3 + 2 * outputs**2 * tokens
    return passes + decompositions
