"""What a growth method leaves open, in Python, in YAML below `growth.options` and as `grow --option`."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hf_progressive.config import strict_yaml

DepthPosition = Literal["append", "spread"] | Sequence[int]
NewLayers = Literal["copy", "fresh"]
NewMoments = Literal["zero", "mean"]
Repeats = Literal["whole", "shared"]

_LARGEST = 1e6  # of any factor or deviation: far beyond it no weight is a number
_LARGEST_MULTIPLE = 1 << 24  # entries, as many as the largest vocabulary
_CHOICES = {"new_layers": ("copy", "fresh"), "repeats": ("whole", "shared"), "new_moments": ("zero", "mean")}
_AT_LEAST_ZERO = {
    "init_std": "None for initializer_range",
    "free_scale": "None for init_std",
    "new_scale": "0 for what exact growth asks",
    "noise": "None for the method's own",
    "shrink": "None for the method's own",
    "perturb": "None for the method's own",
}
_NUMBERS = {*_AT_LEAST_ZERO, "drop", "uneven"}


@dataclass(frozen=True, kw_only=True)
class GrowthOptions:
    """What a method leaves open.

    "RMS" is the root mean square of the entries that a matrix inherits. Entries of a wider matrix that have no parent
    are of two kinds: those that the function fixes, at zero or, in the channels of a model with LayerNorm, at the mean
    of the old; and those that are free, because nothing reads what they make or they read what is zero.
    """

    depth_position: DepthPosition = "append"
    """Where silent new layers go: `append` after the last, `spread` evenly among the old, or a list of the parent's
    layers (from 0; −1 is before the first) after which to put one each. Methods that repeat layers have their own
    order."""

    new_layers: NewLayers = "copy"
    """Silent new layers `copy` a neighbour or are drawn `fresh`; both add nothing at first."""

    depth_method: str | None = None
    """A depth rule by name, in place of the method's own: `insert`, `llama_pro`, `stack`, `interleave` or `solar`. Any
    way to get wider goes with any way to get deeper."""

    repeats: Repeats = "whole"
    """What a layer that stands there k times adds to the residual stream: each time the `whole` of what it did, or
    `shared`, a k-th each time, as a step of a differential equation becomes k steps of a k-th of its size (arXiv
    1710.10348). The less a layer adds to what it reads, the nearer `interleave` so keeps the function."""

    init_std: float | None = None
    """Standard deviation of free entries and of fresh layers; None takes the config's `initializer_range`."""

    free_scale: float | None = None
    """Standard deviation of the free entries as a share of their matrix's RMS; None takes `init_std`, which may be far
    from the scale of trained weights. The function is kept whatever it is."""

    new_scale: float = 0.0
    """Standard deviation of what is added to the entries that the function fixes, as a share of their matrix's RMS.
    Above 0 the function changes. Norms are rescaled for new channels of that scale, so that behind a norm the old ones
    are of the size they were (the RMS-scale consistency of arXiv 2602.02472), and the new ones of this share of it."""

    noise: float | None = None
    """Symmetry-breaking noise on what reads the copies of one unit, as a share of the RMS; it adds up to zero over the
    copies, so the function is kept. None takes the method's own, and 0.1 on the output matrices of copied experts.
    `upcycle` adds it to every expert's matrices, which changes the function; None there is none."""

    drop: float = 0.0
    """Share of every expert's hidden units that `upcycle` draws anew, with the mean and deviation of what they replace
    (Drop-Upcycling, arXiv 2502.19261). Above 0 the function changes."""

    uneven: float | None = None
    """Draw the shares by which the copies of a unit are read, for every unit alone: in proportion to 1 + u, u uniform
    on ± this, from 0 (even) to below 1. Two copies get α and 1 − α, α from (1 − this)/2 to (1 + this)/2. Shares add up
    to 1, so the function is kept; they depend on the sizes alone, not on the seed. None takes the method's own."""

    shrink: float | None = None
    """Factor of every old matrix; vectors stay. None takes the method's own, 1 for most."""

    perturb: float | None = None
    """Noise on every matrix that comes from the parent, old entries and new ones, and on what ends a silent layer: its
    standard deviation as a share of that with which a new model is drawn. None takes the method's own, 0 for most."""

    new_moments: NewMoments = "zero"
    """What Adam's second moment is on new entries of an inherited tensor, if moments are grown along: `zero`, or the
    `mean` over the tensor's inherited entries; `hf_progressive.growth.optimizer` says what either means for the first
    steps."""

    vocab_multiple: int = 1
    """The vocabulary is padded to a multiple of this."""

    def __post_init__(self) -> None:
        position = self.depth_position
        named = isinstance(position, str)
        if position not in {"append", "spread"} if named else not _whole_numbers(position):
            raise ValueError(
                f"depth_position={position!r}: expected 'append', 'spread' or a list of the parent's layers"
            )
        if not isinstance(self.depth_method, str | None):
            raise ValueError(f"depth_method={self.depth_method!r}: expected a name, or None for the method's own")
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name}={value!r}: expected {' or '.join(map(repr, choices))}")
        for name, default in _AT_LEAST_ZERO.items():
            value = getattr(self, name)
            if (value is not None or name == "new_scale") and not (_is_number(value) and 0 <= value < float("inf")):
                raise ValueError(f"{name}={value!r}: expected a number ≥ 0, or {default}")
        if not (_is_number(self.drop) and 0 <= self.drop <= 1):
            raise ValueError(f"drop={self.drop!r}: expected a share of hidden units, from 0 to 1")
        if self.uneven is not None and not (_is_number(self.uneven) and 0 <= self.uneven < 1):
            raise ValueError(f"uneven={self.uneven!r}: expected a number ≥ 0 and < 1, or None for the method's own")
        if not _whole_numbers([self.vocab_multiple]) or not 1 <= self.vocab_multiple <= _LARGEST_MULTIPLE:
            raise ValueError(
                f"vocab_multiple={self.vocab_multiple!r}: expected a number ≥ 1 and ≤ {_LARGEST_MULTIPLE}"
            )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "GrowthOptions":
        """Build options from values by name.

        Args:
            values: What is not left at its default.

        Returns:
            The options.

        Raises:
            ValueError: There is no such option, or a value is of another type or out of range.

        >>> GrowthOptions.of({"nois": 0.1})
        Traceback (most recent call last):
        ValueError: nois: unknown option; did you mean 'noise'?
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise ValueError(f"{name}: unknown option; {strict_yaml.nearest(name, known)}")
        return cls(**{name: _number(value) if name in _NUMBERS else value for name, value in values.items()})


def _number(value: Any) -> Any:
    # YAML takes 1e-3 for text.
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _whole_numbers(values: object) -> bool:
    return isinstance(values, Sequence) and all(type(value) is int for value in values)
