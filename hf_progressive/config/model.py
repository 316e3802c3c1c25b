"""The models: what all rungs share, one rung, and how a rung comes of its parent."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from hf_progressive.config import strict_yaml
from hf_progressive.config.checks import LONGEST_NAME, require, require_in_range
from hf_progressive.config.ranges import NotNegative, PositiveFraction, Range, Whole, shown

RUNG_SECTIONS = ("training", "growth", "phi")
"""Sections of the ladder of which a rung may change keys."""

RUNG_KEYS = ("name", "depth", "family", "source", "revision", "until", *RUNG_SECTIONS)
"""Keys of a rung that are no fields of its model's configuration."""

_NAME_PATTERN = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What every rung's model shares."""

    family: str = "gpt2"
    """The `model_type` of the Transformers configuration."""

    context: Annotated[int, Range(8, 2**31)] = 256
    """Tokens of context, which is also the length of a training block."""

    aspect_ratio: Whole = 64
    """Width per layer, for rungs sized by their depth alone."""

    head_dim: Whole = 64
    """Width of an attention head, for rungs sized by their depth alone."""

    fields: dict[str, Any] = field(default_factory=dict)
    """Further fields of the family's configuration, the same on every rung (`resid_pdrop: 0.0`)."""

    def __post_init__(self) -> None:
        require_in_range(self)


@dataclass(frozen=True, kw_only=True)
class RungConfig:
    """One model of the ladder: a depth on the dial, explicit configuration fields, or a model trained elsewhere."""

    name: str
    """The rung's name, which is its folder's too; `d11` where the depth alone is given."""

    depth: Whole | None = None
    """Layers, from which everything else follows; None where `fields` or `source` say it."""

    fields: dict[str, Any] = field(default_factory=dict)
    """Fields of the family's configuration (`n_layer: 5, n_embd: 96, n_head: 6`)."""

    family: str | None = None
    """The family of this rung and of those after it, where it is another than before: `mixtral` for experts made of a
    Llama by `growth: {method: upcycle}`. What the rung does not name is kept from the one before."""

    source: str | None = None
    """The first rung only: a rung's or another checkpoint's folder, or its Hub name. It is taken over as it is, with
    its tokenizer, its record and its estimates for Φ, and is not trained."""

    revision: str | None = None
    """The tag or commit of a `source` on the Hub, which must be pinned."""

    until: PositiveFraction | None = None
    """In a trunk: the share of the last rung's tokens after which the next rung grows from this one; None on the
    last."""

    training: dict[str, Any] = field(default_factory=dict)
    """Keys of the ladder's `training` that have another value on this rung and for its baseline."""

    growth: dict[str, Any] = field(default_factory=dict)
    """Keys of the ladder's `growth` that have another value for this rung's growth."""

    phi: dict[str, Any] = field(default_factory=dict)
    """Keys of the ladder's `phi` that have another value on this rung."""

    def __post_init__(self) -> None:
        require(
            _NAME_PATTERN.fullmatch(self.name) is not None,
            f"name: {shown(self.name)} cannot name a folder; use letters, digits, '.', '_' and '-', {LONGEST_NAME} at"
            " the most",
        )
        require_in_range(self)
        require(
            self.source is None or not (self.depth or self.fields),
            f"{self.name}: a rung with a source has its sizes; leave depth and fields out",
        )
        require(
            self.source is not None or (self.depth is None) != (not self.fields),
            f"{self.name}: give either a depth or explicit fields",
        )
        require(
            self.family is None or bool(self.fields),
            f"{self.name}: a rung of another family needs explicit fields, the number of experts among them",
        )
        require(
            self.revision is None or self.source is not None,
            f"{self.name}: revision {self.revision!r} without a source; name the source, or leave the revision out",
        )

    @classmethod
    def from_yaml(cls, value: Any, path: str) -> "RungConfig":
        """Read a rung: `d11`, `{depth: 11, …}`, `{name: …, n_layer: …, …}` or `{name: …, source: …, revision: …}`."""
        if isinstance(value, str):
            match = re.fullmatch(r"d([0-9]{1,30})", value)
            require(
                match is not None, f"{path}: {value!r} is no depth; write d11, or a mapping with a name and fields"
            )
            assert match is not None
            return cls(name=value, depth=strict_yaml.convert(Whole, int(match[1]), path))
        require(isinstance(value, Mapping), f"{path}: expected d11 or a mapping, got {shown(value)}")
        fields = {str(key): item for key, item in value.items()}
        texts = dict.fromkeys(("name", "source", "revision", "family"), str)
        own: dict[str, Any] = {"depth": Whole, "until": PositiveFraction, **texts}
        given = {
            key: strict_yaml.convert(hint | None, fields.pop(key, None), f"{path}.{key}") for key, hint in own.items()
        }
        for key in RUNG_SECTIONS:
            given[key] = strict_yaml.convert(dict[str, Any], fields.pop(key, {}), f"{path}.{key}")
        name, depth = given.pop("name"), given["depth"]
        kind = "explicit fields" if given["source"] is None else "a source"
        require(name is not None or depth is not None, f"{path}: a rung with {kind} needs a name")
        try:
            return cls(name=name or f"d{depth}", fields=fields, **given)
        except ValueError as error:
            raise ValueError(f"{path}.{error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the rung as `from_yaml` reads it."""
        given = {key: getattr(self, key) for key in ("depth", "source", "revision", "until", "family")}
        sections = {key: getattr(self, key) for key in RUNG_SECTIONS if getattr(self, key)}
        named = {key: value for key, value in given.items() if value is not None}
        return {"name": self.name, **named, **sections, **self.fields}


@dataclass(frozen=True, kw_only=True)
class GrowthConfig:
    """How a rung is made from its parent."""

    method: str = "exact"
    """A growth method; `exact` keeps the parent's function."""

    options: dict[str, Any] = field(default_factory=dict)
    """Options of `plan_growth`, by name."""

    parent: Literal["final", "stable"] = "final"
    """Grow from the parent after its decay, or from the checkpoint before it; a trunk always does the latter."""

    max_relative_logit_difference: NotNegative = 1e-5
    """Largest |Δlogit| over the logit scale that a function-preserving growth may show before the ladder stops."""

    @staticmethod
    def advice_on(key: str, known: Iterable[str]) -> str:
        """Say what an unknown key is called, or where it belongs."""
        return f"{strict_yaml.nearest(key, known)}; options of a method go under `options`"

    def __post_init__(self) -> None:
        require_in_range(self)

    def require_kept_function(self, who: str, *, difference: float, scale: float) -> None:
        """Raise unless logits differ from the parent's by no more than may be, at their scale."""
        limit = self.max_relative_logit_difference
        require(
            difference <= limit * scale,
            f"{who}: its logits differ from its parent's by {difference:.3g} at a scale of {scale:.3g},"
            f" above growth.max_relative_logit_difference {limit:.0e}",
        )
