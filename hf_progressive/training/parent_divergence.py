"""The function-space form of Φ: what the parent predicts is held, and not where its weights are.

Every k-th optimizer step the model reads a few blocks that the parent knows how to go on with, and

    k·w · (1/T) Σ_t KL( p_parent(· | x_<t) ‖ p_model(· | x_<t) )                                                   (1)

is added to the loss, T being the tokens of these blocks over all processes: w weighs the divergence in nats per token,
whatever k is. Blocks may be old data that are at hand, or texts that the parent writes itself (`generated_blocks`),
with which no old data are needed (arXiv 2605.26097). A step with it costs a forward pass of the parent and a forward
and backward pass of the model more, over the blocks.
"""

import contextlib
import dataclasses
import math
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn import functional

from hf_progressive.config.ranges import class_of, shown
from hf_progressive.distributed.evaluation_mode import evaluation_mode
from hf_progressive.distributed.model_in_memory import require_in_memory
from hf_progressive.distributed.model_tables import require_within_tables

if TYPE_CHECKING:
    from transformers import Trainer as _Behind
else:
    _Behind = object


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParentDivergence:
    """What a trainer holds its model's predictions to; equation 1 of the module.

    The model trains on any engine; the parent stays as it is given. A plain parent is whole on the device of every
    process: in bfloat16 2 bytes per parameter, without gradients or optimizer. One that ZeRO-3 divided while it was
    loaded (`from_pretrained` after the training arguments) or that `fully_shard` divided stays so, and is put together
    while it reads: ZeRO-3 the whole of it, FSDP2 block by block. The logits of a reading are held twice, and in
    float32: 8 bytes × batch_size × T × vocabulary, and as much again for the gradient.

    Args:
        parent: The model whose predictions count, such as a copy of what training starts from. It is not trained.
        blocks: (n, T) token ids, read in turn; of several processes each has its own.
        weight: w, in nats per token of divergence over nats per token of loss.
        every: k, optimizer steps from one reading to the next.
        batch_size: Blocks per reading and process.

    Raises:
        ValueError: `weight`, `every` or `batch_size` is not above 0, or there are no blocks.
    """

    parent: nn.Module = dataclasses.field(repr=False)
    blocks: Tensor = dataclasses.field(repr=False)
    weight: float = 1.0
    every: int = 1
    batch_size: int = 8

    def __post_init__(self) -> None:
        require_in_memory(self.parent, "parent")
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight is {self.weight}; it must be above 0")
        for name in ("every", "batch_size"):
            _require_whole(name, getattr(self, name), 1)
        if not isinstance(self.blocks, Tensor):
            raise ValueError(f"blocks are {class_of(self.blocks)}; a tensor (n, T) of token ids is wanted")
        if self.blocks.ndim != 2 or not len(self.blocks):
            raise ValueError(f"blocks have shape {tuple(self.blocks.shape)}; (n, T) token ids are wanted, n above 0")
        require_within_tables(self.parent, self.blocks, "blocks")

    def require_fitting(self, model: nn.Module) -> None:
        """Raise a ValueError if a model cannot read the blocks, or the parent would train along and be no anchor."""
        require_within_tables(model, self.blocks, "blocks")
        held = {id(parameter) for parameter in self.parent.parameters()}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and id(parameter) in held:
                raise ValueError(f"parent holds the model's own {name}, so it would move with it; pass a copy")

    def of(self, model: nn.Module, reading: int, device: torch.device) -> Tensor:
        """Return the mean divergence per token of a model's predictions on the blocks of a reading, with gradient."""
        first = reading * self.batch_size
        rows = torch.arange(first, first + self.batch_size) % len(self.blocks)
        ids = self.blocks[rows].to(device)
        with torch.no_grad(), _gathered(self.parent):
            wanted = self.parent.to(device).eval()(input_ids=ids).logits
        found = model(input_ids=ids).logits
        if wanted.shape != found.shape:
            sizes = f"predicts {wanted.shape[-1]} tokens and the model {found.shape[-1]}"
            raise ValueError(f"parent {sizes}; give a parent with the model's vocabulary, such as one grown to it")
        return mean_divergence(wanted, found)

    def made_alike(self, device: torch.device) -> None:
        """Give the parent of every process the first one's weights; all processes must call.

        Under FSDP some versions of Transformers read a file on one process only (`cpu_ram_efficient_loading`), and
        leave what the others hold unset for the engine to fill in; this model is not the engine's.
        """
        for tensor in (*self.parent.to(device).parameters(), *self.parent.buffers()):
            if not isinstance(tensor, DTensor):
                dist.broadcast(tensor.data, src=0)


def _gathered(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    # whole, where DeepSpeed has divided it without an engine of its own
    divided = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_tensor")]
    if not divided:
        return contextlib.nullcontext()
    import deepspeed

    gathered: contextlib.AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(divided)
    return gathered


def _require_whole(name: str, value: object, least: int, where_none: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        why = where_none if value is None else ""
        raise ValueError(f"{name} is {shown(value)}; give a whole number, {least} or more{why}")


def mean_divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """Return KL(wanted ‖ found) of predictions by logits (..., V), in nats, as a mean over all tokens.

    >>> round(mean_divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 3.0]]).log1p()).item(), 4)  # ½ ln(25/16)
    0.2231
    """
    target, prediction = (logits.float().log_softmax(-1).flatten(0, -2) for logits in (wanted, found))
    return functional.kl_div(prediction, target, log_target=True, reduction="batchmean")


def generated_blocks(
    model: Any, count: int, length: int, *, start: int, batch_size: int = 64, seed: int = 0
) -> Tensor:
    """Let a causal language model write blocks of its own, each token drawn from its prediction.

    Args:
        model: The model, which is left as it is.
        count: Blocks.
        length: Tokens of each.
        start: The first token of each, such as the tokenizer's beginning of a text.
        batch_size: Blocks that are written together.
        seed: Of what is drawn.

    Returns:
        (count, length) token ids on the CPU.

    Raises:
        ValueError: A number is none or too small, `length` is beyond the model's positions, or `start` beyond its
            vocabulary.
    """
    require_in_memory(model)
    _require_whole("count", count, 1)
    _require_whole("length", length, 2)
    _require_whole("start", start, 0, "; where a tokenizer has no bos_token_id, take its eos_token_id")
    _require_whole("batch_size", batch_size, 1)
    require_within_tables(model, torch.tensor([start]), "generated blocks", length=length - 1)  # the last is not read
    device = next(model.parameters()).device
    generator = torch.Generator(device=device).manual_seed(seed)
    written = []
    with evaluation_mode(model):
        for first in range(0, count, batch_size):
            ids = torch.full((min(batch_size, count - first), 1), start, device=device)
            cache, newest = None, ids
            while ids.shape[1] < length:
                output: Any = model(input_ids=newest, past_key_values=cache, use_cache=True)
                chances, cache = output.logits[:, -1].float().softmax(-1), output.past_key_values
                newest = torch.multinomial(chances, 1, generator=generator)
                ids = torch.cat([ids, newest], dim=1)
            written.append(ids.cpu())
    return torch.cat(written)


class DivergenceSteps(_Behind):
    """The part of the trainer that adds a `ParentDivergence` to the loss.

    Its gradient comes from a backward pass of its own before the last micro-batch's, so that neither accumulation nor
    the number of processes changes it, and DeepSpeed, which takes the optimizer's step within that last pass, has it.
    """

    def __init__(self, *args: Any, divergence: ParentDivergence | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if divergence is not None:
            if not isinstance(divergence, ParentDivergence):
                raise ValueError(f"divergence is {class_of(divergence)}; give ParentDivergence(parent, blocks, ...)")
            divergence.require_fitting(self.model)
        self.divergence = divergence
        self._divergences: list[Tensor] = []  # since the last log, on their device

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        self._divergences = []  # another training's may be left
        if self.divergence is not None and self.is_fsdp_enabled:
            self.divergence.made_alike(self.accelerator.device)
        return prepared

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Run one micro-batch; on the last of an optimizer step, add the divergence from the parent to the loss."""
        held = self.divergence
        if held is None or not self.accelerator.sync_gradients or self.state.global_step % held.every:
            unheld: Tensor = super().training_step(model, inputs, *args, **kwargs)
            return unheld
        turn = self.state.global_step // held.every
        reading = turn * self.accelerator.num_processes + self.accelerator.process_index
        model.train()
        with self.compute_loss_context_manager():
            divergence = held.of(model, reading, self.accelerator.device)
        strength = held.weight * held.every
        if self.is_deepspeed_enabled:
            engine = self.accelerator.deepspeed_engine_wrapped
            engine.backward(divergence * strength, sync_gradients=False, scale_wrt_gas=False)
        else:
            self.accelerator.backward(divergence * strength)
        self._divergences.append(divergence.detach())
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        return loss + strength * divergence.detach().to(loss)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the mean divergence in nats per token as `phi/divergence` beside the training loss."""
        if "loss" in logs and self._divergences:
            mean = torch.stack(self._divergences).mean()  # of this process's readings
            logs["phi/divergence"] = float(self.accelerator.reduce(mean, "mean"))
            self._divergences.clear()
        super().log(logs, *args, **kwargs)
