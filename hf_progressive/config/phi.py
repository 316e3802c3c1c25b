"""The inheritance penalty."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hf_progressive.config.checks import require, require_in_range
from hf_progressive.config.ranges import NotNegative, PositiveFraction, Whole

_TERMS = {"ewc_lambda": "fisher", "gamma": "subspace"}  # each weight, and the section that its term is made of
_OF_BOTH = "fisher.batch_size"  # also of what a subspace is learned from


@dataclass(frozen=True, kw_only=True)
class FisherConfig:
    """How the parent's diagonal Fisher information is estimated."""

    kind: Literal["empirical", "true", "optimizer", "ones"] = "empirical"
    """Labels from the data, or sampled from the model; or for nothing, from the second moment that the parent's AdamW
    has kept of the gradients, which is the empirical one of whole sequences (`definition` and `sequences` do not
    count); or 1 on every entry that the parent had, which is L2-SP and needs no estimate."""

    definition: Literal["token", "sequence"] = "token"
    """Whose gradients are squared: single tokens', with which λ = 1 weighs a step as the parent's own loss does, or
    whole sequences'."""

    sequences: Whole = 128
    """Blocks of the parent's own training data to estimate it from."""

    batch_size: Whole = 8
    """Blocks per forward and backward pass on a CPU, for `subspace` too; on an accelerator its memory says how many.
    Changes the time and not the result."""

    optimizer: str | None = None
    """Under `kind: optimizer`, of a first rung that was trained elsewhere: its `optimizer.pt`, or the folder of the
    Trainer checkpoint that has it."""

    batch_tokens: Whole | None = None
    """Tokens of an optimizer step in that training."""

    def __post_init__(self) -> None:
        require_in_range(self)
        given = [name for name in ("optimizer", "batch_tokens") if getattr(self, name) is not None]
        require(
            self.kind == "optimizer" or not given,
            f"{' and '.join(given)}: count under kind: optimizer only; set that, or leave out",
        )
        require(len(given) != 1, "optimizer and batch_tokens: one is given without the other; give both")


@dataclass(frozen=True, kw_only=True)
class SubspaceConfig:
    """How the parent's output subspace of each weight matrix is learned."""

    source: Literal["weights", "gradients", "activations"] = "weights"
    """What the subspace spans: the matrix's singular vectors, output gradients or output activations."""

    energy: PositiveFraction = 0.95
    """Share of the squared singular values (or of the trace) that the basis keeps."""

    sequences: Whole = 64
    """Blocks for the sources `gradients` and `activations`."""

    side: Literal["outside", "inside"] = "outside"
    """What γ restrains: `outside`, (I − P)ΔW, keeps the child to what the parent's outputs span; `inside`, PΔW, keeps
    what the parent's outputs span as it is and leaves the rest free, as methods against forgetting do."""

    def __post_init__(self) -> None:
        require_in_range(self)


@dataclass(frozen=True, kw_only=True)
class PhiConfig:
    """The inheritance penalty Φ of grown rungs.

    Its other keys ask for `ewc_lambda` or `gamma`, be it 0: `fisher` for the first, `subspace` for the second.
    """

    ewc_lambda: NotNegative = 0.0
    """λ, weight of the Fisher-weighted squared distance from the parent; 0 leaves the term out."""

    gamma: NotNegative = 0.0
    """γ, weight of the squared distance outside (or inside) the parent's output subspace; 0 leaves the term out."""

    apply: Literal["gradient", "proximal"] = "gradient"
    """`gradient` adds Φ's gradient to the task's before the optimizer's step; `proximal` moves the weights towards the
    parent's after it, in closed form, with the Fisher information over its mean."""

    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Course of λ and γ over training."""

    until: PositiveFraction = 0.5
    """Share of the rung's steps after which a linear or cosine schedule has reached 0."""

    fisher: FisherConfig = field(default_factory=FisherConfig)
    """How the Fisher information is estimated."""

    subspace: SubspaceConfig = field(default_factory=SubspaceConfig)
    """How the subspace is learned."""

    def __post_init__(self) -> None:
        require_in_range(self)

    @property
    def is_off(self) -> bool:
        return self.ewc_lambda == 0 and self.gamma == 0

    @property
    def departures(self) -> list[str]:
        """In which ways it differs from what once was the only one: the choices that are not the first."""
        ones = ["ones"] if self.ewc_lambda > 0 and not self.estimates_fisher else []
        side = [self.subspace.side] if self.gamma > 0 and self.subspace.side != "outside" else []
        return [*ones, *([self.apply] if self.apply != "gradient" else []), *side]

    @property
    def estimates_fisher(self) -> bool:
        """Whether the parent's Fisher information is estimated for it, in whatever way."""
        return self.ewc_lambda > 0 and self.fisher.kind != "ones"

    @property
    def reads_optimizer(self) -> bool:
        """Whether the parent's optimizer has to be kept for it."""
        return self.ewc_lambda > 0 and self.fisher.kind == "optimizer"

    @property
    def most_sequences(self) -> int:
        """Blocks that estimates read at the most."""
        return max(self.fisher.sequences, self.subspace.sequences)


def require_weight_in_ladder(ladder: Mapping[str, Any], path: str = "", *, elsewhere: Collection[str] = ()) -> None:
    """Refuse what a ladder says of Φ where nothing gives it a weight, be it 0.

    What the ladder's section says serves every rung that gives a weight; what a rung says serves that rung alone.

    Args:
        ladder: The ladder's plain values, valid ones, as they are read and before defaults are in them.
        path: The ladder's dotted path, with a dot at its end.
        elsewhere: The weights that recipes give the ladder's Φ.

    Raises:
        ValueError: A key would have no effect; the message names its dotted path.
    """
    shared = _dotted(ladder.get("phi", {}))
    rungs = {
        index: _dotted(rung.get("phi", {})) for index, rung in enumerate(ladder["rungs"]) if isinstance(rung, Mapping)
    }
    given = {*elsewhere, *_weights_in(shared)}
    for index, own in rungs.items():
        _refuse_idle(own, given | _weights_in(own), f"{path}rungs.{index}.phi")
    _refuse_idle(shared, given.union(*map(_weights_in, rungs.values())), f"{path}phi")


def require_weight_in_study(
    ladder: Mapping[str, Any], recipes: Iterable[tuple[Mapping[str, Any], Sequence[PhiConfig]]]
) -> None:
    """Refuse what a study's ladder or one of its recipes says of Φ where nothing gives it a weight, be it 0.

    Args:
        ladder: The ladder's plain values.
        recipes: Of every recipe, what it sets, and the penalties of its rungs.

    Raises:
        ValueError: A key would have no effect; the message names its dotted path.
    """
    elsewhere = set()
    for index, (changes, penalties) in enumerate(recipes):
        own = [key.removeprefix("phi.") for key in changes if key.startswith("phi.")]
        given = _weights_in(own) | {name for name in _TERMS for phi in penalties if getattr(phi, name) > 0}
        _refuse_idle(own, given, f"recipes.{index}.set.phi")
        elsewhere |= given
    require_weight_in_ladder(ladder, "ladder.", elsewhere=elsewhere)


def _dotted(phi: Mapping[str, Any]) -> list[str]:
    return [
        name
        for key, value in phi.items()
        for name in ([f"{key}.{inner}" for inner in value] if isinstance(value, Mapping) else [key])
    ]


def _weights_in(keys: Iterable[str]) -> set[str]:
    return {name for name in _TERMS if name in keys}


def _refuse_idle(keys: Collection[str], given: Collection[str], path: str) -> None:
    if not given:
        _refuse_all(keys, path, "neither ewc_lambda nor gamma is given; give one (0 leaves Φ off)")
    for weight, section in _TERMS.items():
        if given and weight not in given:
            idle = [key for key in keys if key.startswith(f"{section}.") and key != _OF_BOTH]
            _refuse_all(idle, path, f"{weight} is not given; give it (0 leaves its term off)")


def _refuse_all(keys: Collection[str], path: str, reason: str) -> None:
    names = ", ".join(f"{path}.{key}" for key in keys)
    require(not keys, f"{names}: without effect, for {reason}, or leave {'it' if len(keys) == 1 else 'them'} out")
