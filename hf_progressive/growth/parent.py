"""The parent's tensors, from a folder or a model in memory, and what the plan makes of them.

Every tensor of the child draws its new entries from a generator of its own, seeded by the seed and the tensor's name:
the result depends on neither order nor sharding.
"""

import hashlib
import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_progressive.growth.expert_pieces import PublishedTensors
from hf_progressive.growth.growth_plan import GrowthPlan
from hf_progressive.growth.reader import CheckpointReader, TensorSpec, is_finite
from hf_progressive.growth.reused_memory import ReusedMemory
from hf_progressive.growth.tensor_plan import TensorPlan

_LAYER = re.compile(r"\d+(?=\.)")


class ModelTensors:
    """The tensors of a model in memory, read as those of a `CheckpointReader` are."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._state: dict[str, Tensor] = model.state_dict()
        self.origin = type(model).__name__
        """Where the tensors are: the model's class."""
        self.specs = {name: TensorSpec(shape=tuple(t.shape), dtype=t.dtype) for name, t in self._state.items()}
        """Shape and dtype of every tensor, by name."""

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU, which may share memory with the model; NaN or an infinity is a ValueError."""
        tensor = self._state[name].cpu()
        if not is_finite(tensor):
            raise ValueError(f"tensor {name} holds NaN or infinite values; a sound model is needed")
        return tensor


class ParentTensors:
    """The parent's tensors by canonical name, once it is certain that each is there exactly once."""

    def __init__(self, plan: GrowthPlan, tensors: CheckpointReader | ModelTensors) -> None:
        family = plan.source_family
        self._origin = tensors.origin
        self._tensors = PublishedTensors(family, plan.source_config, tensors)
        try:
            plan.check_source_keys({key: spec.shape for key, spec in self._tensors.specs.items()})
        except ValueError as error:
            raise ValueError(f"{tensors.origin}: {error}") from None
        names = {key: family.canonical_name(key) for key in self._tensors.specs}
        self._plan = plan
        self._keys = {name: key for key, name in names.items() if name not in plan.ignored_sources}
        self.specs = {name: self._tensors.specs[key] for name, key in self._keys.items()}
        """Shape and dtype of every tensor, by canonical name."""
        for name, spec in self.specs.items():
            if not spec.dtype.is_floating_point:
                raise ValueError(
                    f"{self._origin}: {self._keys[name]} is stored as {str(spec.dtype).removeprefix('torch.')}, so the"
                    " weights are quantized or damaged; dequantize them first, or take the original"
                )
        self._require_tied({name: key for key, name in names.items()})

    def _require_tied(self, keys: Mapping[str, str]) -> None:
        # A head that the config ties is left out: it must be the embedding, or what was trained would be lost.
        for rule in self._plan.source_family.rules:
            held = [name for name in (rule.name, *rule.published) if name in keys]
            if not rule.tied_to or rule.name not in self._plan.ignored_sources or not held:
                continue
            head, embedding = (self._tensors.read(keys[name]) for name in (held[0], rule.tied_to))
            if not torch.equal(head, embedding):
                raise ValueError(
                    f"{self._origin}: {keys[held[0]]} differs from {keys[rule.tied_to]}, though config.json says"
                    " tie_word_embeddings: true; set that to false there, or remove the head's weight"
                )

    @property
    def parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(math.prod(spec.shape) for spec in self.specs.values())

    def child_specs(self, dtype: torch.dtype | None = None) -> dict[str, TensorSpec]:
        """Return the shapes and dtypes of the child's tensors, by name, in the order of the plan.

        Without a `dtype` for all, each keeps that of the tensor it is made from, and a new one takes that of the same
        tensor of another layer.
        """
        of_any_layer = {_LAYER.sub("", name): spec.dtype for name, spec in self.specs.items()}
        main = next(iter(of_any_layer.values()))

        def kept(tensor: TensorPlan) -> torch.dtype:
            if tensor.sources:
                return self.specs[tensor.sources[0]].dtype
            return of_any_layer.get(_LAYER.sub("", tensor.name), main)

        return {t.name: TensorSpec(shape=t.shape, dtype=dtype or kept(t)) for t in self._plan.stored}

    def grow(self, tensor: TensorPlan, *, seed: int, dtype: torch.dtype, memory: ReusedMemory | None = None) -> Tensor:
        """Make a tensor of the child, rounded once to `dtype`; it may share memory with the parent's or `memory`."""
        digest = hashlib.sha256(f"{seed}:{tensor.seeded_by}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        exact = tensor.produce(lambda name: self._tensors.read(self._keys[name]), generator, memory)
        if dtype == exact.dtype:
            return exact
        if memory is None:
            rounded = exact.to(dtype)
        else:
            rounded = memory.empty(exact.shape, dtype).copy_(exact)
            memory.give_back(exact)
        if not is_finite(rounded):
            raise ValueError(f"tensor {tensor.name} overflows {dtype}; choose dtype='bfloat16' or 'float32'")
        return rounded
