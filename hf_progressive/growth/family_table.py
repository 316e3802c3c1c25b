"""What a family of models is to the growth engine: a table of its tensors and of the config fields that size them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hf_progressive.growth.axis import Role
from hf_progressive.growth.operators import Fresh

AxisName = Literal[
    "vocab",  # tokens
    "positions",  # learned position embeddings
    "embedding",  # residual channels as the embeddings write them
    "residual",  # residual channels as attention and MLP write them
    "normed",  # residual channels as a norm hands them to attention and MLP
    "gain",  # gains of those norms
    "shift",  # their biases
    "post_gain",  # gains of norms behind attention and MLP, whose output enters the stream
    "final",  # residual channels as the last norm hands them to the output head
    "final_gain",
    "final_shift",
    "query",  # heads · head_dim
    "key",  # key/value heads · head_dim
    "value",  # key/value heads · head_dim
    "context",  # heads · head_dim, what attention hands to its output projection
    "head_dim",  # one head's dimensions, the gains of query and key norms
    "query_gain",  # heads · head_dim, gains of a norm over all query heads
    "key_gain",  # key/value heads · head_dim, gains of a norm over all key heads
    "mlp",  # hidden units of the MLP
    "experts",  # experts of a mixture, each with an MLP of its own
    "expert_mlp",  # hidden units of one expert
    "shared_mlp",  # hidden units of the expert that every token passes
    "one",  # a single unit: the gate of that expert
]

Norm = Literal["layer", "rms", "weightless_rms"]
"""Kinds of norms, by the algebra that growth follows."""

Init = Literal["normal", "scaled_normal", "ones", "zeros"]
"""How a new model initialises a tensor; `scaled_normal` divides the standard deviation by √(2 · layers)."""


@dataclass(frozen=True)
class DimRule:
    """One dimension in a family's table: one axis, or those that a fused tensor stores one after the other.

    With `grouped` it stores them key/value head by key/value head: the first head's queries, its key, its value, then
    the next head's.
    """

    role: Role
    axes: tuple[AxisName, ...]
    grouped: bool = False


def reads(*axes: AxisName) -> DimRule:
    """Describe an input dimension by the axes it reads."""
    return DimRule("read", axes)


def writes(*axes: AxisName) -> DimRule:
    """Describe an output dimension by the axes it writes."""
    return DimRule("write", axes)


def writes_grouped(*axes: AxisName) -> DimRule:
    """Describe an output dimension that stores queries, keys and values key/value head by key/value head."""
    return DimRule("write", axes, grouped=True)


@dataclass(frozen=True)
class WeightRule:
    """One line of a family's table: a tensor, or the same tensor of every layer.

    Attributes:
        name: The name `save_pretrained` writes, `{layer}` in place of the layer's index.
        dims: The dimensions in the order of storage: `Conv1D` (read, write), `Linear` (write, read), `Embedding`
            (read the token, write the features), vectors one.
        init: How a new model initialises it.
        closes: It is the last of its branch: zero here, and the branch adds nothing to the residual stream.
        offset: The working value is the stored value plus this (Gemma stores gain − 1).
        when: A config field that must be true for the tensor to exist, or a function of the config; empty if it always
            exists.
        tied_to: The tensor that it shares if the config ties word embeddings; it is not stored then.
        published: The names in files, where those are others: with `{expert}` in them, the tensor holds all experts
            along its first dimension, and files hold each alone, its second dimension divided among the names.
        sparse: Only layers that are mixtures have it (true), or only those that are not (false); None for every layer.
    """

    name: str
    dims: tuple[DimRule, ...]
    init: Init = "normal"
    closes: bool = False
    offset: float = 0.0
    when: str | Callable[[Any], bool] = ""
    tied_to: str = ""
    published: tuple[str, ...] = ()
    sparse: bool | None = None

    @property
    def per_expert(self) -> bool:
        """Whether files hold it expert by expert."""
        return any("{expert}" in name for name in self.published)

    @property
    def leaves_expert(self) -> bool:
        """Whether it is what experts end with, one matrix each in files, and not gate and up, which are two."""
        return self.per_expert and len(self.published) == 1

    @property
    def per_layer(self) -> bool:
        """Whether every layer has one."""
        return "{layer}" in self.name

    def exists(self, config: Any) -> bool:
        """Tell whether a model has this tensor as one of its own, neither switched off nor tied to another."""
        if self.tied_to and config.tie_word_embeddings:
            return False
        if callable(self.when):
            return self.when(config)
        return not self.when or bool(getattr(config, self.when))

    def fresh(self, std: float, layers: int) -> Fresh:
        """Return the distribution of working values that a new model draws the tensor from."""
        match self.init:
            case "normal":
                return Fresh(std=std)
            case "scaled_normal":
                return Fresh(std=std / (2 * layers) ** 0.5)
            case "ones":
                return Fresh(mean=1.0)
            case "zeros":
                return Fresh()


def linear(
    name: str, *dims: DimRule, bias: str | None = "", init: Init = "normal", closes: bool = False
) -> Iterator[WeightRule]:
    """Describe a linear layer: its weight, and a bias always (""), by a config field of that name, or never (None)."""
    yield WeightRule(name + ".weight", dims, init, closes)
    if bias is not None:
        yield WeightRule(name + ".bias", tuple(dim for dim in dims if dim.role == "write"), "zeros", closes, when=bias)


def norm(
    name: str,
    gain: AxisName,
    shift: AxisName | None = None,
    *,
    offset: float = 0.0,
    closes: bool = False,
    when: str | Callable[[Any], bool] = "",
) -> Iterator[WeightRule]:
    """Describe a norm: its gain, and where it has one its shift."""
    yield WeightRule(name + ".weight", (writes(gain),), "ones", closes, offset, when)
    if shift is not None:
        yield WeightRule(name + ".bias", (writes(shift),), "zeros", closes, when=when)


@dataclass(frozen=True)
class Sizes:
    """What can grow, in the words every family shares.

    `width` counts channels of the residual stream, `heads` those of queries, `mlp` hidden units, `vocab` tokens, and
    `positions` is the longest context. Of mixtures, `experts` counts the experts of a layer, `chosen` those that a
    token is sent to, `expert_mlp` the hidden units of each, `shared_mlp` those of the expert for every token.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    positions: int
    experts: int = 0
    chosen: int = 0
    expert_mlp: int = 0
    shared_mlp: int = 0


@dataclass(frozen=True)
class Family:
    """A family of models: its tensors, its config fields and the few facts that decide which growth is exact.

    Attributes:
        model_type: The config's `model_type`.
        title: The family's name, for people; the `model_type` if empty.
        size_fields: Config field of each of the `Sizes`.
        rules: The tensors, in the order of the stock class's `named_parameters`.
        norm: `layer` subtracts the mean, `rms` does not, `weightless_rms` has no gain either.
        eps_field: Config field of the norms' epsilon; empty if the class fixes it.
        prefix: Prefix of the base model's tensors, which files of the base model alone lack.
        head_prefixes: Names that never carry it.
        ignored: Names (`{layer}` in place of the index) of buffers that old files carry: masks, rotary frequencies.
        layer_fields: Config fields that hold a list with one entry per layer; layers take theirs along.
        neutral_fields: Config fields of the family, beside the sizes, that may differ between parent and child.
        scaled_scores: Attention scores are divided by √head_dim: always, never, or if the config field named is true.
        layered_scores: Config field that, if true, divides them by the layer's number.
        rotary: Positions enter by rotating queries and keys (RoPE), and not by learned embeddings.
        partial_rotary: `rope_parameters` may name a `partial_rotary_factor`: the share of a head that is turned.
        alibi: Config field that, if true, puts a slope per head (ALiBi) in place of rotations.
        normed_queries: Queries and keys are normalised, with the epsilon of `eps_field`: over each head's dimensions
            (true), or over those of all heads at once (`all_heads`).
        scaled_embedding: The embedding is multiplied by √width on the way into the residual stream.
        position_rows: Rows that the table of learned positions has beyond the longest context.
        repeats: Config fields that repeat a size, by its name in `Sizes`; they must equal it, and follow it.
        kv_heads: Key/value heads of a config, where no field says it alone.
        init_field: Config field of the standard deviation that new weights are drawn with.
        gated: The MLP has a gate. A ladder gives it 8/3 of the width then, else 4 times.
        dropouts: Config fields of dropout rates; a ladder sets them to 0, and growth leaves their choice free.
        head_dim_fields: Config fields that a ladder derives from the head_dim, where nothing names them.
        unsupported: Config fields that must be false, with the reason.
        required: Config fields that must be true, with the reason.
        sparse_layers: Tells of a config which of its layers are mixtures of experts, where not all or none are.
        follow_sparse: Writes into a config which of its layers are.
        normed_choice: The weights of the chosen experts are divided by their sum: always, never, or if the config
            field named is true.
    """

    model_type: str
    size_fields: Mapping[str, str]
    rules: tuple[WeightRule, ...]
    norm: Norm
    eps_field: str
    prefix: str
    head_prefixes: tuple[str, ...] = ("lm_head.",)
    ignored: tuple[str, ...] = ()
    layer_fields: tuple[str, ...] = ()
    neutral_fields: frozenset[str] = frozenset()
    scaled_scores: bool | str = True
    layered_scores: str = ""
    rotary: bool = False
    partial_rotary: bool = False
    alibi: str = ""
    normed_queries: bool | Literal["all_heads"] = False
    scaled_embedding: bool = False
    position_rows: int = 0
    repeats: Mapping[str, str] = field(default_factory=dict)
    kv_heads: Callable[[Any], int] | None = None
    init_field: str = "initializer_range"
    gated: bool = True
    dropouts: frozenset[str] = frozenset()
    head_dim_fields: Mapping[str, Callable[[int], Any]] = field(default_factory=dict)
    unsupported: Mapping[str, str] = field(default_factory=dict)
    required: Mapping[str, str] = field(default_factory=dict)
    sparse_layers: Callable[[Any], Sequence[bool]] | None = None
    follow_sparse: Callable[[Any, Sequence[bool]], None] | None = None
    normed_choice: bool | str = False
    title: str = ""

    @property
    def has_experts(self) -> bool:
        """Whether its MLPs are mixtures of experts."""
        return "experts" in self.size_fields

    def sizes(self, config: Any) -> Sizes:
        """Read the sizes: an MLP width of None stands for 4 · width, a missing head_dim for width / heads."""
        values: dict[str, Any] = {
            name: getattr(config, config_field, None) for name, config_field in self.size_fields.items()
        }
        values["mlp"] = values["mlp"] or 4 * values["width"]
        values["kv_heads"] = self.kv_heads(config) if self.kv_heads else values.get("kv_heads") or values["heads"]
        values["head_dim"] = values.get("head_dim") or values["width"] // values["heads"]
        return Sizes(**values)

    def tensors(self, config: Any) -> Iterator[tuple[str, WeightRule, int | None]]:
        """Iterate over a model's tensors: the name, the rule and the layer (None outside the layers)."""
        rules = [rule for rule in self.rules if rule.exists(config)]
        layered = [rule for rule in rules if rule.per_layer]
        first = rules.index(layered[0])
        yield from ((rule.name, rule, None) for rule in rules[:first])
        layers = self.sizes(config).layers
        sparse = [None] * layers if self.sparse_layers is None else self.sparse_layers(config)
        for layer in range(layers):
            here = (rule for rule in layered if rule.sparse in (None, sparse[layer]))
            yield from ((rule.name.format(layer=layer), rule, layer) for rule in here)
        yield from ((rule.name, rule, None) for rule in rules[first:] if not rule.per_layer)

    def shape(self, rule: WeightRule, config: Any) -> tuple[int, ...]:
        """Return the shape of a rule's tensor."""
        lengths = self.axis_lengths(config)
        return tuple(sum(lengths[axis] for axis in dim.axes) for dim in rule.dims)

    def stored(self, config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Iterate over what files hold: canonical names, those of single experts among them, and shapes."""
        for _, rule, layer in self.tensors(config):
            shape = self.shape(rule, config)
            if rule.per_expert:
                each = (shape[1] // len(rule.published), *shape[2:])
                yield from ((part, each) for parts in expert_names(rule, layer, shape[0]) for part in parts)
            else:
                yield stored_name(rule, layer), shape

    def axis_lengths(self, config: Any) -> dict[AxisName, int]:
        """Return the number of units along every axis."""
        sizes = self.sizes(config)
        channels: dict[AxisName, int] = dict.fromkeys(
            ("embedding", "residual", "normed", "gain", "shift", "post_gain", "final", "final_gain", "final_shift"),
            sizes.width,
        )
        queries: dict[AxisName, int] = dict.fromkeys(("query", "query_gain", "context"), sizes.heads * sizes.head_dim)
        keys: dict[AxisName, int] = dict.fromkeys(("key", "key_gain", "value"), sizes.kv_heads * sizes.head_dim)
        return (
            channels
            | queries
            | keys
            | {
                "vocab": sizes.vocab,
                "positions": sizes.positions + self.position_rows,
                "head_dim": sizes.head_dim,
                "mlp": sizes.mlp,
                "experts": sizes.experts,
                "expert_mlp": sizes.expert_mlp,
                "shared_mlp": sizes.shared_mlp,
                "one": 1,
            }
        )

    @property
    def stores_otherwise(self) -> bool:
        """Whether files hold some tensors under other names than the class, or expert by expert."""
        return any(rule.published for rule in self.rules)

    @property
    def closes_by_gain(self) -> bool:
        """Whether the gains of norms behind attention and MLP silence a layer, and not output projections."""
        return any(rule.closes and "post_gain" in dim.axes for rule in self.rules for dim in rule.dims)

    def derives_head_dim(self, config: Any) -> bool:
        """Tell whether a head's dimensions follow from width and heads."""
        name = self.size_fields.get("head_dim")
        return name is None or getattr(config, name, None) is None

    def refuse_unsupported(self, config: Any) -> None:
        """Raise a ValueError for an option that growth cannot map."""
        for names, wanted in ((self.unsupported, False), (self.required, True)):
            for name, reason in names.items():
                if bool(value := getattr(config, name, wanted)) != wanted:
                    raise ValueError(f"{name}={value!r} cannot be grown: {reason}; models of {name}={wanted} can")
        for name, size in self.repeats.items():
            of = self.size_fields[size]
            if (value := getattr(config, name)) != getattr(config, of):
                raise ValueError(
                    f"{name}={value!r} beside {of}={getattr(config, of)!r} cannot be grown: growth maps models in"
                    " which the two are equal"
                )

    def canonical_name(self, key: str) -> str:
        """Return the name that the stock class saves a tensor by; files of the base model lack its prefix."""
        if key.startswith((self.prefix, *self.head_prefixes)):
            return key
        return self.prefix + key

    def ignored_names(self, config: Any) -> Iterator[str]:
        """Iterate over the canonical names that growth does without: masks and rates of old files, a tied head."""
        for name in self.ignored:
            yield from dict.fromkeys(name.format(layer=layer) for layer in range(self.sizes(config).layers))
        tied = (rule for rule in self.rules if rule.tied_to and not rule.exists(config))
        yield from (name for rule in tied for name in (rule.name, *rule.published))


def stored_name(rule: WeightRule, layer: int | None) -> str:
    """Return the name by which files hold a tensor that is not divided into experts."""
    name = rule.published[0] if rule.published else rule.name
    return name if layer is None else name.format(layer=layer)


def expert_names(rule: WeightRule, layer: int | None, experts: int) -> list[list[str]]:
    """Return the names by which files hold the experts of a tensor, expert by expert, part by part."""
    return [[name.format(layer=layer, expert=expert) for name in rule.published] for expert in range(experts)]
