"""From dense to experts: a dense model regarded as a mixture, which the method `upcycle` then grows.

| parent             | child       | how                                                           | exact            |
|--------------------|-------------|---------------------------------------------------------------|------------------|
| `llama`, `mistral` | `mixtral`   | every expert a copy of the MLP, the router drawn anew         | always           |
| `qwen3`            | `qwen3_moe` | the same                                                      | `norm_topk_prob` |
| `olmo2`            | `flex_olmo` | the same                                                      | `norm_topk_prob` |
| `qwen2`            | `qwen2_moe` | the shared expert is the MLP; routed ones are fresh, silent   | always           |

Where the weights of the chosen experts are divided by their sum, K copies of one expert add up to it, whatever the
router says. Where they are not (`norm_topk_prob: false`), that holds for K = E alone. In `qwen2_moe` every token
passes a shared expert as well, whose gate σ(g·x) is ½ for g = 0: its output matrix is the MLP's, doubled, and the
output matrices of the routed experts are zero.

The option `drop` draws a share of every expert's hidden units anew, the same units in its three matrices, each matrix
from a normal distribution with the mean and the deviation of what it replaces (Drop-Upcycling, arXiv 2502.19261, whose
authors find 0.5 best); the option `noise` adds noise to every expert's matrices. Exact copies learn apart slowly, by
the tokens that the router sends them; either option tells them apart and changes the function. Neither is for
`qwen2_moe`, whose routed experts are fresh.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from hf_progressive.config.ranges import with_article
from hf_progressive.growth.axis import Dim
from hf_progressive.growth.families import FAMILIES
from hf_progressive.growth.family_table import WeightRule
from hf_progressive.growth.mixtures import MIXTURES
from hf_progressive.growth.operators import Fresh
from hf_progressive.growth.options import GrowthOptions
from hf_progressive.growth.tensor_plan import TensorPlan

_GATED = ("gate_proj", "up_proj", "down_proj")
_MLP = "model.layers.{layer}.mlp."


@dataclass(frozen=True)
class Upcycling:
    """How the tensors of a dense family become those of a family with experts.

    Attributes:
        source: The dense family's `model_type`.
        target: That of the family with experts.
        names: By a tensor's name in files, as the table of `target` has it, that of the dense family's table.
        factors: Factor of a tensor, by its name in the table of `target`.
        zeros: New tensors that are zero.
        absent: Config fields of the dense family that must be false, since the other has no such thing.
        widths: Config fields of `target` that are the dense family's MLP width.
        fixed: Config fields of `target` that say what the dense family always has.
    """

    source: str
    target: str
    names: Mapping[str, str]
    factors: Mapping[str, float] = field(default_factory=dict)
    zeros: frozenset[str] = frozenset()
    absent: tuple[str, ...] = ()
    widths: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def copies(self) -> bool:
        """Whether the routed experts are copies of the MLP."""
        return any("{expert}" in name for name in self.names)

    def from_dense(self, plan: TensorPlan, rule: WeightRule, layer: int | None) -> TensorPlan:
        """Make a tensor's plan, of a parent with one expert, one of the dense parent; `layer` is the parent's."""
        known = {each.name for each in FAMILIES[self.source].rules}
        if rule.per_expert:
            parents = [self.names[name] for name in rule.published if name in self.names]
        else:
            parents = [name for name in (self.names.get(rule.name, rule.name),) if name in known]
        if not plan.sources:  # a layer that is new
            return plan
        if not parents:
            zero = rule.closes or rule.name in self.zeros
            words, fresh = ("zero: new, silent at first", Fresh()) if zero else ("fresh", plan.fresh)
            return replace(plan, sources=(), rule=words, fresh=fresh, heir=False, perturb=0.0)
        factor = self.factors.get(rule.name, 1.0)
        dims = tuple(
            Dim(dim.axis.scaled(factor, 1 / factor), dim.role) if dim.role == "write" else dim for dim in plan.dims
        )
        words = plan.rule if factor == 1.0 else f"{plan.rule}; × {factor:g}"
        if plan.sources == (rule.tied_to,):  # an output head that is tied in the parent
            return plan
        return replace(plan, sources=tuple(name.format(layer=layer) for name in parents), dims=dims, rule=words)


def _copied(*names: str) -> dict[str, str]:
    return {name: _MLP + part + ".weight" for name, part in zip(names, _GATED, strict=True)}


_MIXTRAL = "model.layers.{layer}.block_sparse_moe.experts.{expert}."
_QWEN = _MLP + "experts.{expert}."
_SHARED = _MLP + "shared_expert."

UPCYCLINGS: dict[str, Upcycling] = {
    upcycling.source: upcycling
    for upcycling in (
        Upcycling(
            source="llama",
            target="mixtral",
            names=_copied(_MIXTRAL + "w1.weight", _MIXTRAL + "w3.weight", _MIXTRAL + "w2.weight"),
            absent=("attention_bias", "mlp_bias"),
            fixed={"sliding_window": None},
        ),
        Upcycling(
            source="mistral",
            target="mixtral",
            names=_copied(_MIXTRAL + "w1.weight", _MIXTRAL + "w3.weight", _MIXTRAL + "w2.weight"),
        ),
        Upcycling(
            source="qwen3",
            target="qwen3_moe",
            names=_copied(*(f"{_QWEN}{part}.weight" for part in _GATED)),
            absent=("use_sliding_window",),
            widths=("moe_intermediate_size",),
        ),
        Upcycling(
            source="olmo2",
            target="flex_olmo",
            names=_copied(*(f"{_QWEN}{part}.weight" for part in _GATED)),
        ),
        Upcycling(
            source="qwen2",
            target="qwen2_moe",
            names=_copied(*(f"{_SHARED}{part}.weight" for part in _GATED)),
            factors={_SHARED + "down_proj.weight": 2.0},
            zeros=frozenset({_MLP + "shared_expert_gate.weight"}),
            widths=("shared_expert_intermediate_size",),
            fixed={"qkv_bias": True},
        ),
    )
}
"""How dense families become mixtures, by the dense family's `model_type`."""


def upcycling_of(source: Any, target: Any | Mapping[str, Any]) -> Upcycling:
    """Return how a parent becomes a mixture; a parent that cannot, or a target of another family, is a ValueError."""
    upcycling, dense = UPCYCLINGS.get(source.model_type), with_article(source.model_type)
    if upcycling is None:
        known = ", ".join(f"{name} → {each.target}" for name, each in UPCYCLINGS.items())
        raise ValueError(f"method 'upcycle' makes no mixture of {dense}; it knows {known}")
    named = target.get("model_type") if isinstance(target, Mapping) else target.model_type
    if named not in (None, upcycling.target):
        mixture = with_article(upcycling.target)
        raise ValueError(f"{dense} is upcycled into {mixture}, not into {with_article(named)}")
    for name in upcycling.absent:
        if getattr(source, name):
            raise ValueError(
                f"{dense} with {name}={getattr(source, name)!r} has no exact {upcycling.target}: that"
                " has no such thing"
            )
    return upcycling


def refuse_without_copies(upcycling: Upcycling, options: GrowthOptions) -> None:
    """Raise a ValueError for options that alter copies of the MLP where the experts are none."""
    for name in ("drop", "noise"):
        if not upcycling.copies and (value := getattr(options, name)):
            raise ValueError(
                f"{name}={value:g} tells copies of the MLP apart, and the routed experts of"
                f" {with_article(upcycling.target)} are fresh; leave it out"
            )


def with_choice(upcycling: Upcycling, target: Any | Mapping[str, Any]) -> Any | Mapping[str, Any]:
    """Return the target, a dict completed by how many experts a token is sent to: as many as in the stock class.

    Raises:
        ValueError: A dict does not say how many experts there are to be.
    """
    if not isinstance(target, Mapping):
        return target
    config_class: Any = CONFIG_MAPPING[upcycling.target]
    experts, chosen = (MIXTURES[upcycling.target].size_fields[name] for name in ("experts", "chosen"))
    given = _by_field(config_class, target)
    if type(given.get(experts)) is not int:
        raise ValueError(
            f"{experts} is {given.get(experts)!r}; say how many experts the {upcycling.target} is to have, such as"
            f" {experts}=8"
        )
    return {chosen: min(getattr(config_class(), chosen), given[experts]), **given}


def as_mixture(upcycling: Upcycling, source: Any, target: Any | Mapping[str, Any]) -> Any:
    """Return the config of the mixture that a dense parent is: of one expert, or of silent ones beside a shared one.

    What the dense family has no word for is taken from the target, as `with_choice` returns it.
    """
    config_class: Any = CONFIG_MAPPING[upcycling.target]
    family = MIXTURES[upcycling.target]
    dense = source.to_dict()
    given = _by_field(config_class, target if isinstance(target, Mapping) else target.to_dict())
    own = {entry.name for entry in fields(config_class)} - {entry.name for entry in fields(PreTrainedConfig)}
    taken = {name: value for name, value in dense.items() if name in own or name in _GENERAL}
    free = {name: given[name] for name in own - dense.keys() if name in given}
    width = dense[FAMILIES[upcycling.source].size_fields["mlp"]]
    sizes = {family.size_fields[name]: 1 for name in ("experts", "chosen")} if upcycling.copies else {}
    return config_class(**{**free, **taken, **dict.fromkeys(upcycling.widths, width), **upcycling.fixed, **sizes})


def _by_field(config_class: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    # What a config calls by two names (num_experts, num_local_experts), by that of its field.
    own = {entry.name for entry in fields(config_class)}
    other = config_class.attribute_map | {name: alias for alias, name in config_class.attribute_map.items()}
    return {other[name] if name not in own and other.get(name) in own else name: given[name] for name in given}


_GENERAL = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "dtype", "head_dim")
