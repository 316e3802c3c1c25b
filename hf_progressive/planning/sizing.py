"""The depth dial: a rung's model configuration, its parameters, its training FLOPs and its token budget.

One number sizes a model. At depth d it has d layers, a width of `aspect_ratio`·d and width / `head_dim` attention
heads, as in nanochat's miniseries; a rung may name the fields of its configuration instead. Parameters and FLOPs are
counted on the stock class built on the meta device, which allocates nothing, so that they are exact for each family.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, PretrainedConfig

from hf_progressive.config import ModelConfig, RungConfig, TokenizerConfig, TrainingConfig, strict_yaml
from hf_progressive.config.model import RUNG_KEYS
from hf_progressive.config.ranges import shown
from hf_progressive.data.tokenizer import load_tokenizer, vocabulary_size
from hf_progressive.growth.divisors import unusable_value
from hf_progressive.growth.families import FAMILIES, family_of, field_advice
from hf_progressive.growth.mixtures import MIXTURES
from hf_progressive.growth.target import (
    LARGEST_SIZE,
    MOST_LAYERS,
    NO_SIZES,
    check_field_values,
    complete_target,
    in_words,
)
from hf_progressive.storage import ReadingFromOutside
from hf_progressive.training.flops import flops_per_token, meta_model, unused_by_a_token


def _gated_mlp_width(width: int) -> int:
    # Three matrices of 8/3 width cost what two of 4 width do (Shazeer, arXiv 2002.05202); rounded up to whole tiles.
    return -(-8 * width // (3 * 32)) * 32


def _plain_mlp_width(width: int) -> int:
    return 4 * width


@dataclass(frozen=True, kw_only=True)
class DialFields:
    """The names under which a family's configuration holds what the depth decides."""

    layers: str
    """Number of layers."""

    width: str
    """Width of the residual stream."""

    heads: str
    """Number of query heads."""

    context: str
    """Largest number of positions."""

    key_value_heads: str | None
    """Number of key and value heads, as many as query heads unless given; None where the family has no such field."""

    mlp: str | None
    """Width of the MLP; None where the family derives it from the width."""

    mlp_width: Callable[[int], int]
    """The MLP's width at a width of the residual stream."""

    head_dim: str | None
    """Width of a head; None where the family derives it from width and heads."""

    defaults: Mapping[str, Any]
    """Fields that get another value than the family's own default: pretraining uses no dropout."""

    of_head_dim: Mapping[str, Callable[[int], Any]]
    """Fields that scale attention scores, by the head's width."""


def dial_fields(model_type: str) -> DialFields:
    """Return the names of a family that `hf_progressive.growth` knows; another is a ValueError.

    >>> dial_fields("gpt2").width, dial_fields("llama").mlp
    ('n_embd', 'intermediate_size')
    """
    known_families = FAMILIES | MIXTURES
    if model_type not in known_families:
        advice = strict_yaml.nearest(model_type, known_families)
        own = "" if advice.startswith("did you mean") else "; add one from Python with register_family"
        raise ValueError(f"model.family: {model_type!r} is not a family; {advice}{own}")
    family = known_families[model_type]
    own = CONFIG_MAPPING[model_type]()
    names, known = family.size_fields, {field.name for field in dataclasses.fields(own)}
    return DialFields(
        layers=names["layers"],
        width=names["width"],
        heads=names["heads"],
        context=names["positions"],
        key_value_heads=names.get("kv_heads"),
        mlp=None if getattr(own, names["mlp"]) is None else names["mlp"],
        mlp_width=_gated_mlp_width if family.gated else _plain_mlp_width,
        head_dim=names.get("head_dim") if names.get("head_dim") in known else None,
        defaults={name: 0.0 for name in sorted(family.dropouts) if getattr(own, name)},
        of_head_dim=family.head_dim_fields,
    )


def rung_model_config(model: ModelConfig, rung: RungConfig, *, vocab_size: int) -> PretrainedConfig:
    """Return the Transformers configuration of one rung; no model is built.

    With a depth, width and heads follow from the dial. With explicit fields they are taken as given, and what is not
    given (key/value heads, MLP width) is derived. `model.fields` hold on every rung. GPT-2's dropouts default to 0
    here, because pretraining on data that hardly repeat uses none; `model.fields` may set them.

    Raises:
        ValueError: The family or a field is unknown, a field has a wrong value or is decided elsewhere, the heads do
            not divide the width, or the vocabulary is smaller than the tokenizer's, `vocab_size`.

    >>> config = rung_model_config(ModelConfig(context=128), RungConfig(name="d4", depth=4), vocab_size=1024)
    >>> config.n_layer, config.n_embd, config.n_head, config.n_positions
    (4, 256, 4, 128)
    """
    names = dial_fields(model.family)
    config_class = CONFIG_MAPPING[model.family]
    decided = {names.context: "model.context"}
    if rung.depth is not None:
        decided |= dict.fromkeys((names.layers, names.width, names.heads), "the rung's depth")
    _check_field_names(config_class, model.fields, "model.fields", decided)
    _check_field_names(config_class, rung.fields, f"rung {rung.name}", decided, beside=RUNG_KEYS)

    given = {**model.fields, **rung.fields}
    if rung.depth is not None:
        given |= _dial_sizes(model, rung, rung.depth, names)
    for name in (names.layers, names.width, names.heads, *(["vocab_size"] if "vocab_size" in given else [])):
        value = given.get(name)
        if type(value) is not int or value < 1:
            raise ValueError(f"rung {rung.name}: {name} is {shown(value)}; give a whole number of 1 or more")
        most = MOST_LAYERS if name == names.layers else LARGEST_SIZE
        if value > most:
            raise ValueError(f"rung {rung.name}: {name} is {value:,}; {most:,} are the most that is planned")
    try:
        check_field_values({**model.fields, **rung.fields})
    except ValueError as error:
        raise ValueError(f"rung {rung.name}: {error}") from None
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # no other tokenizer's
    fields = {"vocab_size": vocab_size, names.context: model.context, **tokens, **_derived(given, names), **given}
    _check_divisible(rung, names, fields, head_dim_given=names.head_dim in given)
    if fields["vocab_size"] < vocab_size:
        raise ValueError(
            f"rung {rung.name}: vocab_size {fields['vocab_size']} is below the tokenizer's {vocab_size} entries; "
            f"leave it out, or give that many or more"
        )
    try:
        config: PretrainedConfig = config_class(**fields)
    except (StrictDataclassError, AttributeError, TypeError, LookupError) as error:
        raise ValueError(f"rung {rung.name}: {in_words(error)}") from error
    if fault := unusable_value(config):
        raise ValueError(f"rung {rung.name}: {fault}")
    return config


def larger_model_config(model: ModelConfig, rung: RungConfig, before: PretrainedConfig) -> PretrainedConfig:
    """Return the configuration of a rung that continues an architecture which was trained elsewhere.

    What the rung does not name is kept from the rung before it, as growth keeps it, whatever this package would have
    chosen itself. MLP width and key/value heads follow the family's rule where the rung before follows it, and
    otherwise keep their ratio to width and heads.

    Raises:
        ValueError: A field is unknown, would shrink, or would change the function.
    """
    names = dial_fields(model.family)
    sizes = rung.fields if rung.depth is None else _dial_sizes(model, rung, rung.depth, names)
    given = {**names.defaults, **model.fields, **sizes}
    derived = {}
    width, heads = given.get(names.width), given.get(names.heads)
    if names.mlp is not None and width is not None:
        old, mlp = getattr(before, names.width), getattr(before, names.mlp)
        derived[names.mlp] = names.mlp_width(width) if mlp == names.mlp_width(old) else -(-mlp * width // old)
    if names.key_value_heads is not None and heads is not None:
        derived[names.key_value_heads] = heads * getattr(before, names.key_value_heads) // getattr(before, names.heads)
    try:
        config: PretrainedConfig = complete_target(family_of(before), before, derived | given)
    except ValueError as error:
        raise ValueError(f"rung {rung.name}: {error}") from None
    return config


def _dial_sizes(model: ModelConfig, rung: RungConfig, depth: int, names: DialFields) -> dict[str, int]:
    width = model.aspect_ratio * depth
    if width % model.head_dim and width <= LARGEST_SIZE:  # a larger one is refused, whatever divides it
        raise ValueError(
            f"rung {rung.name}: width {width} (model.aspect_ratio {model.aspect_ratio} × depth {depth}) is not a "
            f"multiple of model.head_dim {model.head_dim}; choose a head_dim that divides it, such as "
            f"{_nearest_divisor(width, model.head_dim)}"
        )
    return {names.layers: depth, names.width: width, names.heads: width // model.head_dim}


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return min(divisors, key=lambda d: (abs(d - wanted), d))


def _derived(given: Mapping[str, Any], names: DialFields) -> dict[str, Any]:
    width, heads = given[names.width], given[names.heads]
    derived = dict(names.defaults)
    if names.key_value_heads is not None:
        derived[names.key_value_heads] = heads
    if names.mlp is not None:
        derived[names.mlp] = names.mlp_width(width)
    if names.head_dim is not None:
        derived[names.head_dim] = width // heads
    head_dim = given.get(names.head_dim or "") or width // heads
    derived |= {name: scale(head_dim) for name, scale in names.of_head_dim.items()}
    return derived


def _check_field_names(
    config_class: Any, fields: Mapping[str, Any], where: str, decided: Mapping[str, str], beside: Sequence[str] = ()
) -> None:
    known = {field.name for field in dataclasses.fields(config_class)}
    for name in fields:
        if name in NO_SIZES:
            raise ValueError(f"{where}: {name}: {NO_SIZES[name]}; leave it out")
        if name in decided:
            raise ValueError(f"{where}: {name} is decided by {decided[name]}; leave it out")
        if name in config_class.attribute_map:
            raise ValueError(f"{where}: {name} is called {config_class.attribute_map[name]!r} in this family")
        if name not in known:
            advice = field_advice(name, config_class.model_type, [*known, *beside])
            raise ValueError(f"{where}: {config_class.model_type} has no field {name!r}; {advice}")


def _check_divisible(rung: RungConfig, names: DialFields, fields: Mapping[str, Any], head_dim_given: bool) -> None:
    width, heads = fields[names.width], fields[names.heads]
    if width % heads and not head_dim_given:
        raise ValueError(
            f"rung {rung.name}: {names.heads} {heads} does not divide {names.width} {width}; "
            f"make the width a multiple of the heads"
        )
    if names.key_value_heads is not None and heads % fields[names.key_value_heads]:
        raise ValueError(
            f"rung {rung.name}: {names.key_value_heads} {fields[names.key_value_heads]} does not divide "
            f"{names.heads} {heads}; each key/value head serves a whole number of query heads"
        )


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Parameters of a model by their part in it.

    `total` = `embedding` + `head` + `non_embedding`, but for a tied output head: that is one matrix, found in
    `embedding` and in `head`.
    """

    total: int
    """Distinct parameters: a tied output head counts once."""

    embedding: int
    """Look-up tables: tokens and, where they are learned, positions."""

    head: int
    """The output matrix (vocabulary × width), whether or not it is the token table itself."""

    non_embedding: int
    """The transformer alone: neither tables nor output head."""

    unused: int = 0
    """Of the transformer, the experts that a token is not sent to; 0 in a dense model."""

    @property
    def active(self) -> int:
        """All that a token meets: `total` without the experts that it is not sent to."""
        return self.total - self.unused

    @property
    def scaling(self) -> int:
        """Transformer and output head, the count that nanochat's token budgets use since late January 2026.

        A tied table counts here, once, for its work as the output head; positions never do. Of a mixture's experts
        those count that a token is sent to.
        """
        return self.non_embedding - self.unused + self.head

    def describe(self) -> str:
        """Return the total, and of a mixture how many of them a token meets."""
        return f"{self.total:,}" + (f" ({self.active:,} active)" if self.unused else "")


def count_parameters(config: PretrainedConfig) -> ParameterCount:
    """Count a model's parameters on its stock class, without allocating them.

    >>> config = rung_model_config(ModelConfig(context=32), RungConfig(name="d1", depth=1), vocab_size=300)
    >>> count = count_parameters(config)
    >>> count.total == count.embedding + count.non_embedding == (300 + 32) * 64 + 12 * 64**2 + 13 * 64 + 2 * 64
    True
    """
    model = meta_model(config)
    head = model.get_output_embeddings().weight
    # `parameters()` yields a shared parameter once.
    tables = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    transformer = [p for p in model.parameters() if id(p) not in tables and p is not head]
    return ParameterCount(
        total=sum(p.numel() for p in model.parameters()),
        embedding=sum(table.numel() for table in tables.values()),
        head=head.numel(),
        non_embedding=sum(p.numel() for p in transformer),
        unused=sum(unused_by_a_token(p, config) for p in transformer),
    )


@dataclass(frozen=True, kw_only=True)
class RungSize:
    """What one rung's model is and what its full cold run takes."""

    name: str
    """The rung's name."""

    config: PretrainedConfig = dataclasses.field(repr=False)
    """The model's configuration."""

    parameters: ParameterCount
    """Its parameters."""

    flops_per_token: int
    """Training FLOPs per token."""

    steps: int
    """Optimizer steps of the cold run: the budget, rounded to whole batches."""

    batch_tokens: int
    """Tokens per optimizer step."""

    @property
    def tokens(self) -> int:
        """Tokens of the cold run."""
        return self.steps * self.batch_tokens

    @property
    def flops(self) -> int:
        """Training FLOPs of the cold run."""
        return self.tokens * self.flops_per_token


def size_rung(name: str, config: PretrainedConfig, training: TrainingConfig, context: int | None = None) -> RungSize:
    """Size a rung's full cold run, of at least one step; without a context, its sequences fill all positions.

    >>> config = rung_model_config(ModelConfig(context=32), RungConfig(name="d1", depth=1), vocab_size=300)
    >>> size = size_rung("d1", config, TrainingConfig(tokens_per_parameter=8.0, batch_tokens=32))
    >>> size.tokens == 8 * count_parameters(config).scaling
    True
    """
    with ReadingFromOutside(
        f"rung {name}",
        "the stock class cannot be built with its fields; correct them",
        also=(RuntimeError, NameError, ImportError),
    ):
        parameters, flops = count_parameters(config), flops_per_token(config, context)
    tokens = round(training.tokens_per_parameter * getattr(parameters, training.budget_parameters))
    return RungSize(
        name=name,
        config=config,
        parameters=parameters,
        flops_per_token=flops,
        steps=max(1, round(tokens / training.batch_tokens)),
        batch_tokens=training.batch_tokens,
    )


def embedding_rows(model: ModelConfig, tokenizer: TokenizerConfig) -> int:
    """Return the rows that a tokenizer needs; 0 where `model.fields` say more, so that none is fetched."""
    if tokenizer.name is None:
        return tokenizer.vocab_size
    if "vocab_size" in model.fields:
        return 0
    return vocabulary_size(load_tokenizer(tokenizer, ()))


def differing_fields(before: PretrainedConfig, after: PretrainedConfig) -> dict[str, Any]:
    """Return the fields of a configuration that another one has otherwise, but for lists with an entry per layer."""
    old, new = before.to_dict(), after.to_dict()
    follows = family_of(before).layer_fields  # lists with an entry per layer, which growth makes itself
    return {name: value for name, value in new.items() if value != old.get(name) and name not in follows}
