"""Tiny models of every family, with weights far from their initial ones, and growth of them in memory."""

import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from hf_progressive.growth.axis import Axis
from hf_progressive.growth.families import FAMILIES
from hf_progressive.growth.growth_plan import GrowthPlan, plan_growth
from hf_progressive.growth.stock_model import KeepFloat64

FIRST_FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "granite", "smollm3", "nanochat")
EVERY_FAMILY = [name if name in FIRST_FAMILIES else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
"""Every family; of those beside the first, whose mechanisms have fast tests of their own, all tests are slow."""
TIED_OR_NOT = [
    pytest.param(name, tied, marks=[] if name in FIRST_FAMILIES else [pytest.mark.slow])
    for name in FAMILIES
    for tied in (True, False)
    if not (tied and name == "nanochat")  # a wider tied NanoChat is refused, and tested as such
]
DERIVED_HEAD_DIM = {"gpt2", "qwen2", "granite", "smollm3", "nanochat", "gpt_neox", "opt", "phi3", "falcon"}
DERIVED_HEAD_DIM |= {"olmo2", "olmo3"}  # head_dim is width / heads
NORMED_OVER_ALL = {"olmo2", "olmo3"}  # heads: copied whole, or new ones beside fixed key/value heads
NORMED_QUERIES = {"qwen3", "nanochat", "gemma3_text"} | NORMED_OVER_ALL
PARTLY_TURNED = {"gpt_neox", "phi3"}
ALL_HEADS = {"gpt2", "gpt_neox", "opt"}  # every query head has a key/value head of its own
ANY_HEAD_DIM = {"gpt2", "opt"}  # no rotation that asks for whole multiples
ALWAYS_TIED_OPTIONS = {"nanochat": (False,)}  # a wider tied NanoChat is refused, and tested as such
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 4,  # all that is read is longer
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}
QUARTER_TURNED = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
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
    "gpt_neox": (
        {},
        {"use_parallel_residual": False, "attention_bias": False},
        {"rope_parameters": QUARTER_TURNED | {"partial_rotary_factor": 0.5}},
    ),
    "opt": ({"activation_function": "gelu"}, {"enable_bias": False}),
    "gemma2": (
        {"sliding_window": 5},
        {"attention_bias": True, "query_pre_attn_scalar": 9, "final_logit_softcapping": 1.5},
        {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma3_text": (
        {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        {"attention_bias": True, "final_logit_softcapping": 1.5},
    ),
    "phi3": (
        {"sliding_window": 5},
        {"rope_parameters": QUARTER_TURNED | {"partial_rotary_factor": 0.5}},
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 4},
    ),
    "falcon": (
        {"new_decoder_architecture": True, "bias": True},
        {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
        {},  # one key/value head
        {"multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "olmo2": ({}, {"attention_bias": True}),
    "olmo3": ({"sliding_window": 5}, {"attention_bias": True}),
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
    if "layer_types" in extra:  # of as many layers as there are
        extra["layer_types"] = [*extra["layer_types"], *["full_attention"] * sizes["layers"]][: sizes["layers"]]
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    eps = {name: 1e-2 for name in [FAMILIES[model_type].eps_field] if name}
    return AutoConfig.for_model(model_type, **(_fields(model_type, **sizes) | eps | tokens | extra))


def fields_of(model_type: str, **sizes: int) -> dict[str, int]:
    """The family's own config fields for sizes in the words all families share, as near as it can grow to them."""
    if model_type in NORMED_OVER_ALL and sizes.get("kv_heads", 0) % 2:
        heads = sizes["heads"] + 1
        sizes |= {"kv_heads": 2, "heads": heads} | ({"width": 8 * heads} if "width" in sizes else {})
    return _fields(model_type, **sizes)


def _fields(model_type: str, **sizes: int) -> dict[str, int]:
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
    with no_init_weights():  # all of them are loaded
        child = AutoModelForCausalLM.from_config(plan.target_config).to(model.dtype).eval()
    child.tie_weights()
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
        with KeepFloat64():  # Gemma 2's attention has no kernel and rounds its softmax
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


def layers_of(model: Any) -> Any:
    """The model's layers."""
    return next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))


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


@dataclass(frozen=True)
class Parent:
    """A parent's config, its sizes in the words all families share, and how its key/value heads are told."""

    model_type: str
    config: Any
    sizes: dict[str, int]
    every_head: bool
    one_key: bool


@st.composite
def parents(draw: Any, model_type: str) -> Parent:
    """A random parent."""

    def integer(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    extra = draw(st.sampled_from(EXTRA_OPTIONS[model_type]))
    every_head = model_type in ALL_HEADS or extra.get("multi_query") is False
    kv_heads, group = integer(1, 2), integer(1, 3)
    if every_head:
        kv_heads, group = integer(1, 3), 1
    one_key = model_type == "falcon" and not every_head and not extra.get("new_decoder_architecture")
    if one_key:
        kv_heads, group = 1, integer(1, 4)
    sizes = {
        "heads": kv_heads * group,
        "kv_heads": kv_heads,
        "head_dim": 8 if model_type in PARTLY_TURNED else 2 * integer(2, 4),  # a part of which is turned
        "layers": integer(1, 3),
        "mlp": integer(3, 12),
        "vocab": integer(5, 12),
        "positions": 12,
    }
    sizes["width"] = sizes["heads"] * (sizes["head_dim"] if model_type in DERIVED_HEAD_DIM else integer(4, 8))
    tied = draw(st.sampled_from(ALWAYS_TIED_OPTIONS.get(model_type, (True, False))))
    config = config_of(model_type, **sizes, tie_word_embeddings=tied, **extra)
    return Parent(model_type, config, sizes, every_head, one_key)


@st.composite
def pairs_from(draw: Any, parent: Parent, method: str) -> Pair:
    """A random target that the method can reach exactly from a parent, any axes at once."""

    def integer(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    def grown(size: int, step: int = 1) -> int:
        return size * integer(1, 3) if tile else size + step * integer(0, 2 * size)

    model_type, old = parent.model_type, parent.sizes
    over_all = model_type in NORMED_OVER_ALL
    tile = method == "tile" or (over_all and method == "split")
    kv_heads, group = old["kv_heads"], old["heads"] // old["kv_heads"]
    new_group, new_kv = group, kv_heads
    if draw(st.booleans()):
        new_group = group * integer(1, 2) if tile or draw(st.booleans()) else integer(1, 2 * group)
        parts = -(-group // new_group)
        new_kv = kv_heads * parts * integer(1, 2) if tile else kv_heads * parts + (0 if over_all else integer(0, 2))
    if parent.one_key:
        new_kv, new_group = 1, grown(group)
    if parent.every_head:
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
    steady = getattr(parent.config, "rope_parameters", {}).get("rope_type") != "longrope"  # or head_dim stays
    if model_type not in NORMED_QUERIES and steady and draw(st.booleans()):
        new["head_dim"] = old["head_dim"] * integer(1, 3)
        if model_type in ANY_HEAD_DIM and not tile:
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
    target = _fields(model_type, **new)
    if parent.config.tie_word_embeddings and draw(st.booleans()):
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
    return Pair(parent.config, target, options)


def growth_pairs(model_type: str, method: str) -> st.SearchStrategy[Pair]:
    """A random parent and a random target that the method can reach exactly, any axes at once."""
    return parents(model_type).flatmap(lambda parent: pairs_from(parent, method))


def map_matrix(axis: Axis, factor: str) -> torch.Tensor:
    """(child, parent) with the factor where a unit is inherited, 0 elsewhere."""
    matrix = torch.zeros(axis.size, axis.parent_size, dtype=torch.float64)
    for start, segment in axis.inherited():
        for unit in range(segment.size):
            matrix[start + unit, segment.source + unit] = getattr(segment, factor)
    return matrix
