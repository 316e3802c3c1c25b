"""Tiny models of every family, with weights far from their initial ones, and growth of them in memory."""

import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from hf_progressive.growth.axis import Axis
from hf_progressive.growth.families import FAMILIES
from hf_progressive.growth.growth_plan import GrowthPlan, plan_growth

DERIVED_HEAD_DIM = {"gpt2", "qwen2", "granite", "smollm3", "nanochat"}  # head_dim is width / heads
NORMED_QUERIES = {"qwen3", "nanochat"}
ALWAYS_TIED_OPTIONS = {"nanochat": (False,)}  # a wider tied NanoChat is refused, and tested as such
EXTRA_OPTIONS = {
    "gpt2": (
        {},
        {"activation_function": "relu"},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
    ),
    "llama": ({}, {"attention_bias": True, "mlp_bias": True}),
    "mistral": ({"sliding_window": 5}, {"sliding_window": None}),
    "qwen2": ({}, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ({}, {"attention_bias": True}, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "gemma": ({}, {"attention_bias": True}),
    "granite": (
        {"attention_multiplier": 0.3, "embedding_multiplier": 2.0, "residual_multiplier": 0.7, "logits_scaling": 3.0},
    ),
    "smollm3": ({"no_rope_layer_interval": 2}, {"attention_bias": True, "mlp_bias": True}),
    "nanochat": ({}, {"attention_bias": True}, {"final_logit_softcapping": None}),
}
SIZES = {
    "width": 16,
    "layers": 2,
    "heads": 2,
    "kv_heads": 2,
    "head_dim": 8,
    "mlp": 24,
    "vocab": 29,
    "positions": 16,
}


def config_of(model_type: str, **options: Any) -> Any:
    """A config of the family, its sizes in the words all families share, with an epsilon that matters."""
    sizes = SIZES | {name: value for name, value in options.items() if name in SIZES}
    extra = {name: value for name, value in options.items() if name not in SIZES}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    eps = {FAMILIES[model_type].eps_field: 1e-2}
    return AutoConfig.for_model(model_type, **(fields_of(model_type, **sizes) | eps | tokens | extra))


def fields_of(model_type: str, **sizes: int) -> dict[str, int]:
    """The family's own config fields for sizes in the words all families share."""
    names = FAMILIES[model_type].size_fields
    if model_type in DERIVED_HEAD_DIM:
        sizes.pop("head_dim", None)
    return {names[name]: value for name, value in sizes.items() if name in names}


def build(config: Any, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """A model whose gains, biases and weights are all random and large enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).to(torch.float64).eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if "norm" in name or ".ln_" in name:
            parameter.data = (parameter.data + 0.3 * noise) if name.endswith("weight") else 0.3 * noise
        elif parameter.ndim == 1:
            parameter.data = 0.3 * noise
        else:
            fan_in = parameter.shape[0] if config.model_type == "gpt2" else parameter.shape[1]
            parameter.data = noise / fan_in**0.5  # more, and rounding errors grow from layer to layer
    model.tie_weights()
    return model.to(dtype)


def grow(model: Any, target: Any, *, seed: int = 0, **options: Any) -> tuple[Any, GrowthPlan]:
    """Grow in memory through the plan alone, tensor by tensor, into the stock class."""
    plan = plan_growth(model.config, target, **options)
    child = AutoModelForCausalLM.from_config(plan.target_config).to(model.dtype).eval()
    load(child, produce(plan, model, seed))
    return child, plan


def produce(plan: GrowthPlan, model: Any, seed: int = 0) -> dict[str, torch.Tensor]:
    """The child's tensors by name."""
    weights = {name: parameter.data for name, parameter in model.named_parameters()}
    return {tensor.name: tensor.produce(weights.__getitem__, generator(tensor.name, seed)) for tensor in plan.tensors}


def generator(name: str, seed: int) -> torch.Generator:
    """A generator for one tensor."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))


def load(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Load tensors that must be exactly the model's parameters, in order and shape."""
    parameters = dict(model.named_parameters())
    assert list(tensors) == list(parameters)
    for name, parameter in parameters.items():
        assert tensors[name].shape == parameter.shape, name
        parameter.data.copy_(tensors[name])


@contextlib.contextmanager
def norms_in_full_precision(*models: Any) -> Iterator[None]:
    """Let RMS norms compute in the model's dtype: the stock classes round to float32, in float64 models too."""
    modules = [module for model in models for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    for module in modules:
        module.forward = _rms_norm.__get__(module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _rms_norm(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    eps = self.variance_epsilon if hasattr(self, "variance_epsilon") else self.eps
    normed = hidden / (hidden.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    if not hasattr(self, "weight"):
        return normed
    return normed * (self.weight + 1 if type(self).__name__.startswith("Gemma") else self.weight)


def tokens_for(config: Any, *, batch: int = 2, length: int = 9, seed: int = 0) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(0, config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def relative_difference(parent: Any, child: Any, tokens: torch.Tensor) -> float:
    """The largest |Δlogit| over the parent's tokens, relative to the largest |logit|."""
    expected = parent(tokens).logits
    found = child(tokens).logits[..., : expected.shape[-1]]
    return ((found - expected).abs().max() / expected.abs().max()).item()


@dataclass(frozen=True)
class Pair:
    """A parent's config, the child's fields and the options of growth."""

    source: Any
    target: dict[str, Any]
    options: dict[str, Any]


@st.composite
def growth_pairs(draw: Any, model_type: str, method: str) -> Pair:
    """A random parent and a random target that the method can reach exactly, any axes at once."""

    def integer(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    tile = method == "tile"
    kv_heads, group = integer(1, 2), integer(1, 3)
    if model_type == "gpt2":
        kv_heads, group = integer(1, 3), 1
    old = {
        "heads": kv_heads * group,
        "kv_heads": kv_heads,
        "head_dim": 2 * integer(2, 4),
        "layers": integer(1, 3),
        "mlp": integer(3, 12),
        "vocab": integer(5, 12),
        "positions": 12,
    }
    old["width"] = old["heads"] * (old["head_dim"] if model_type in DERIVED_HEAD_DIM else integer(4, 8))

    def grown(size: int, step: int = 1) -> int:
        return size * integer(1, 3) if tile else size + step * integer(0, 2 * size)

    new_group, new_kv = group, kv_heads
    if draw(st.booleans()):
        new_group = group * integer(1, 2) if tile or draw(st.booleans()) else integer(1, 2 * group)
        parts = -(-group // new_group)
        new_kv = kv_heads * parts * integer(1, 2) if tile else kv_heads * parts + integer(0, 2)
    if model_type == "gpt2":
        new_kv, new_group = grown(kv_heads), 1
    new = {
        "heads": new_kv * new_group,
        "kv_heads": new_kv,
        "head_dim": old["head_dim"],
        "layers": old["layers"] + integer(0, 3),
        "mlp": grown(old["mlp"]),
        "vocab": old["vocab"] + integer(0, 4),
        "positions": old["positions"] + integer(0, 4),
    }
    if new["heads"] < old["heads"]:  # groups may be divided, heads not be lost
        new["heads"], new["kv_heads"] = old["heads"], old["kv_heads"]
    if model_type not in NORMED_QUERIES and draw(st.booleans()):
        new["head_dim"] = old["head_dim"] * integer(1, 3)
        if model_type == "gpt2" and not tile:
            new["head_dim"] = old["head_dim"] + integer(0, 7)
    if model_type in DERIVED_HEAD_DIM:
        new["width"] = new["heads"] * new["head_dim"]
        if tile and new["width"] % old["width"]:
            new["heads"], new["kv_heads"], new["width"] = old["heads"], old["kv_heads"], old["heads"] * new["head_dim"]
    elif tile:
        new["width"] = old["width"] * new["heads"] // old["heads"] * integer(1, 2)
        if new["width"] % old["width"]:
            new["width"] = old["width"] * new["heads"]
    else:
        new["width"] = -(-grown(old["width"]) // new["heads"]) * new["heads"]
    extra = draw(st.sampled_from(EXTRA_OPTIONS[model_type]))
    tied = draw(st.sampled_from(ALWAYS_TIED_OPTIONS.get(model_type, (True, False))))
    target = fields_of(model_type, **new)
    if tied and draw(st.booleans()):
        target["tie_word_embeddings"] = False
    options = {
        "method": method,
        "new_layers": draw(st.sampled_from(("copy", "fresh"))),
        "depth_position": draw(st.sampled_from(("append", "spread"))),
        "init_std": 0.3,  # large, so that new entries that should be silent and are not would show
        "noise": draw(st.sampled_from((0.0, 0.3))),
        "uneven": draw(st.sampled_from((None, 0.0, 0.6))),
        "free_scale": draw(st.sampled_from((None, 1.0))),
    }
    if method == "llama_pro":  # it has its own places
        del options["depth_position"]
    return Pair(config_of(model_type, **old, tie_word_embeddings=tied, **extra), target, options)


def map_matrix(axis: Axis, factor: str) -> torch.Tensor:
    """(child, parent) with the factor where a unit is inherited, 0 elsewhere."""
    matrix = torch.zeros(axis.size, axis.parent_size, dtype=torch.float64)
    for start, segment in axis.inherited():
        for unit in range(segment.size):
            matrix[start + unit, segment.source + unit] = getattr(segment, factor)
    return matrix
