"""The sizes that training is measured at, by name, and what to try where one does not fit into memory."""

import dataclasses
import re
from collections.abc import Iterator

from transformers import PretrainedConfig

from hf_progressive.config import ModelConfig, RungConfig, load_ladder_config
from hf_progressive.planning.sizing import rung_model_config

VOCABULARY = 65_536  # of configs/ladder_d10_d18.yaml
MOST_LAYERS_OF_16 = 14  # above, 16 sequences at once and the four variants' weights do not fit into 80 GB together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """A model and its batches, before it is known what fits."""

    config: PretrainedConfig
    micro_batch: int
    accumulation: int


def size_named(name: str) -> Size:
    """Return a size: `d12` by nanochat's dial, `l4w64` by layers and width, or `m50`."""
    if name == "m50":  # as karpathy/autoresearch trains: 50 M parameters, vocabulary 8,192, large micro-batches
        fields = {"n_layer": 10, "n_embd": 640, "n_head": 10}
        return _sized(ModelConfig(context=2048), RungConfig(name=name, fields=fields), 8192, 64, 2)
    if match := re.fullmatch(r"d(\d+)", name):
        model = load_ladder_config("ladder_d10_d18").model
        depth = int(match[1])
        micro_batch, accumulation = (16, 2) if depth <= MOST_LAYERS_OF_16 else (8, 4)
        return _sized(model, RungConfig(name=name, depth=depth), VOCABULARY, micro_batch, accumulation)
    if match := re.fullmatch(r"l(\d+)w(\d+)", name):
        fields = {"n_layer": int(match[1]), "n_embd": int(match[2]), "n_head": max(1, int(match[2]) // 32)}
        return _sized(ModelConfig(context=256), RungConfig(name=name, fields=fields), 1024, 16, 4)
    raise SystemExit(f"--sizes: {name!r} is none; give dN (such as d12), lNwM (such as l4w64) or m50")


def with_step_tokens(size: Size, tokens: int) -> Size:
    """Return the size with as many tokens per step, in micro-batches no larger than its own."""
    sequences = max(1, tokens // size.config.max_position_embeddings)
    micro_batch = next(n for n in range(min(size.micro_batch, sequences), 0, -1) if sequences % n == 0)
    return dataclasses.replace(size, micro_batch=micro_batch, accumulation=sequences // micro_batch)


def _sized(model: ModelConfig, rung: RungConfig, vocab_size: int, micro_batch: int, accumulation: int) -> Size:
    config = rung_model_config(model, rung, vocab_size=vocab_size)
    return Size(config=config, micro_batch=micro_batch, accumulation=accumulation)


def smaller(size: Size) -> Iterator[Size]:
    """Yield the size, then what takes less memory: half the micro-batch, at the last fewer layers."""
    micro_batch, layers = size.micro_batch, size.config.num_hidden_layers
    while micro_batch >= 1:
        accumulation = size.accumulation * size.micro_batch // micro_batch
        yield dataclasses.replace(size, micro_batch=micro_batch, accumulation=accumulation)
        micro_batch //= 2
    while layers > 1:
        layers = layers * 2 // 3
        config = type(size.config).from_dict({**size.config.to_dict(), "n_layer": layers})
        yield Size(config=config, micro_batch=1, accumulation=size.accumulation * size.micro_batch)
