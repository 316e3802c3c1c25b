"""Growth methods: what a wider model's units and a deeper model's layers inherit from.

| method               | width                        | depth                          | function | arXiv      |
|----------------------|------------------------------|--------------------------------|----------|------------|
| `exact`              | new units, silent at first   | new layers, silent at first    | kept     | 2310.07999 |
| `identity`           | as `exact`                   | as `exact`: the identity       | kept     | 2310.07999 |
| `tile`               | every unit copied k times    | as `exact`                     | kept     | 2409.12903 |
| `split`              | copies read in uneven shares | as `exact`                     | kept     | 1511.05641 |
| `llama_pro`          | as `exact`                   | a silent copy after each group | kept     | 2401.02415 |
| `stack`              | as `exact`                   | the stack on top of itself     | changed  | 2405.15319 |
| `interleave`         | as `exact`                   | every layer repeated           | changed  | 1710.10348 |
| `solar`              | as `exact`                   | upper layers on lower ones     | changed  | 2312.15166 |
| `shrink_pad_perturb` | old × 0.4, zeros, all noisy  | as `exact`, shrunk and noisy   | changed  | 2605.13405 |
| `pad`                | zeros, nothing rescaled      | as `exact`                     | changed  | –          |
| `random`             | fresh weights                | fresh weights                  | changed  | –          |
| `upcycle`            | as `exact`, MLPs → experts   | as `exact`                     | kept     | 2212.05055 |

The papers: LEMON for `exact` (its padding), HyperCloning, Net2Net, LLaMA Pro, G_stack, layer interpolation, SOLAR, and
"When is warmstarting effective", whose operator takes no heed of the function.

Names may have hyphens (`llama-pro`). `exact` is the default, for any sizes, and the one to train on with: new units
are random on their input side and zero on their output side, so gradients reach them within two steps and no two are
alike. `tile` and `split` start every new unit from a trained one. Copies that are read alike learn alike: those of
`tile` stay alike unless `noise`, `uneven` or dropout tells them apart. Under Adam uneven shares alone part them
slowly, since it takes the size off a gradient, so `split` adds noise of its own; noise adds up to zero over the
copies of a unit. A residual stream can only hold whole copies, since a norm weighs every channel alike; `split` fills
the remainder as `exact` does. `stack`, `interleave` and `solar` give up the function for new layers that work from
the start; under the option `repeats: shared` every copy adds a share of what the one layer did, which is what the
paper of `interleave` does. `pad` and `random` are what the others are compared with.

The option `depth_method` takes any depth rule for any method: `split` with `depth_method: stack` grows both axes by
copies. `hf_progressive.growth.options` has all options; those that cost the function (`new_scale`, `shrink`,
`perturb`) go with any method too, and a plan's `changes` says what it is that changes the function.

A method of one's own is a function or two:

    def mirrored(old, new):
        return [UnitOrigin(unit) if unit < old else UnitOrigin(None) for unit in reversed(range(new))]

    register_method("mirrored", summary="new units in front of the old, in reverse", width=mirrored)
"""

import difflib
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace

from hf_progressive.growth.layers import (
    DepthRule,
    insert_after_groups,
    insert_layers,
    interleave_layers,
    overlap_layers,
    stack_layers,
)
from hf_progressive.growth.options import GrowthOptions
from hf_progressive.growth.units import (
    UnitOrigin,
    WidthRule,
    append_units,
    split_units,
    tile_units,
    uneven_shares,
)


@dataclass(frozen=True)
class Method:
    """A way to grow; `register_method` says what each field means."""

    name: str
    summary: str
    _: KW_ONLY
    width: WidthRule = append_units
    depth: DepthRule = insert_layers
    keeps_width: bool = True
    keeps_depth: bool = True
    rescales: bool = True
    zero_gains: bool = False
    inherits: bool = True
    noise: float = 0.0
    shrink: float = 1.0
    perturb: float = 0.0
    upcycles: bool = False

    def units(self, what: str, old: int, new: int) -> Sequence[UnitOrigin]:
        """Return the origin of each unit of a wider axis; shares that do not add up to 1 are a ValueError."""
        if old == new:
            return [UnitOrigin(unit) for unit in range(old)]
        try:
            units = self.width(old, new)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None
        shares = [0.0] * old
        for unit in units:
            if unit.source is not None:
                shares[unit.source] += unit.share
        if len(units) != new or not all(math.isclose(share, 1.0, rel_tol=1e-9) for share in shares):
            raise ValueError(
                f"{what}: the method {self.name!r} gives {len(units)} units of {new}, and shares of the {old} old ones"
                f" that add up to {min(shares):g} … {max(shares):g}; they must add up to 1"
            )
        return units

    def with_options(self, options: GrowthOptions) -> "Method":
        """Return the method as the options have it; a depth method that is not known is a ValueError."""
        chosen = {name: getattr(options, name) for name in ("noise", "shrink", "perturb")}
        method = replace(self, **{name: value for name, value in chosen.items() if value is not None})
        if options.uneven is not None:
            method = replace(method, width=uneven_shares(self.width, options.uneven))
        if options.drop and not self.upcycles:
            raise ValueError(f"drop={options.drop:g} is for the method 'upcycle'; leave it out")
        if options.depth_method is not None:
            method = method._with_depth(options.depth_method)
        if options.repeats != "whole" and method.keeps_depth:
            told = "only stack, interleave and solar repeat layers; take one of them, or leave it out"
            raise ValueError(f"repeats={options.repeats!r}: {told}")
        return method

    def _with_depth(self, depth_method: str) -> "Method":
        named = underscored(depth_method)
        if named not in DEPTH_METHODS:
            raise ValueError(f"depth_method={depth_method!r} is not known; choose one of {', '.join(DEPTH_METHODS)}")
        if not self.inherits:
            raise ValueError(f"depth_method={depth_method!r}: {self.name!r} inherits no layers; leave it out")
        depth, keeps_depth = DEPTH_METHODS[named]
        return replace(self, depth=depth, keeps_depth=keeps_depth)


DEPTH_METHODS: dict[str, tuple[DepthRule, bool]] = {
    "insert": (insert_layers, True),
    "llama_pro": (insert_after_groups, True),
    "stack": (stack_layers, False),
    "interleave": (interleave_layers, False),
    "solar": (overlap_layers, False),
}
"""The depth rules that the option `depth_method` names, and whether they keep the function."""

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("exact", "new units and layers that are silent at first; the function is kept"),
        Method("identity", "`exact` by another name: new layers compute the identity at first"),
        Method("tile", "whole multiples by copying every unit (HyperCloning)", width=tile_units),
        Method("split", "any width by copies read in uneven shares (Net2Net, LEMON)", width=split_units, noise=0.1),
        Method("llama_pro", "a silent copy after each group of layers (LLaMA Pro)", depth=insert_after_groups),
        Method("stack", "the whole stack repeated on itself (G_stack)", depth=stack_layers, keeps_depth=False),
        Method("interleave", "every layer repeated in place", depth=interleave_layers, keeps_depth=False),
        Method("solar", "upper layers on lower ones, those in the middle twice (SOLAR)", depth=overlap_layers,
               keeps_depth=False),
        Method("shrink_pad_perturb", "old weights shrunk, zeros around them, noise on all (2605.13405)",
               rescales=False, keeps_width=False, shrink=0.4, perturb=1.0),
        Method("pad", "zeros around the old weights, gains too, nothing rescaled", rescales=False, zero_gains=True,
               keeps_width=False),
        Method("random", "fresh weights, as from scratch", inherits=False, keeps_width=False, keeps_depth=False),
        Method("upcycle", "a dense model's MLPs become mixtures of experts (sparse upcycling)", upcycles=True),
    )
}  # fmt: skip
"""Every method, by name."""


def register_method(
    name: str,
    *,
    summary: str,
    width: WidthRule = append_units,
    depth: DepthRule = insert_layers,
    keeps_width: bool = True,
    keeps_depth: bool = True,
    rescales: bool = True,
    zero_gains: bool = False,
    inherits: bool = True,
    noise: float = 0.0,
    shrink: float = 1.0,
    perturb: float = 0.0,
) -> Method:
    """Make a method known under a name.

    Args:
        name: The name to pass as `method`.
        summary: One line on what it does and where it comes from.
        width: What the units of a wider axis inherit from; it is asked about residual channels, heads and MLP units.
            Of the residual channels only whole sets of copies are used, since a norm weighs every channel alike.
        depth: What the layers inherit from.
        keeps_width: Growing in width keeps the function.
        keeps_depth: Growing in depth keeps the function.
        rescales: Rescale norms, scores and readers as exactness asks; without, new entries of matrices are zero.
        zero_gains: Gains of new channels are zero; otherwise the mean of the old.
        inherits: Take weights from the parent at all.
        noise: Symmetry-breaking noise among copies, unless the options name another.
        shrink: Factor of every old matrix, unless the options name another.
        perturb: Noise on every matrix that is inherited, as a share of a new model's, unless the options name another.

    Returns:
        The method.

    Raises:
        ValueError: The name is taken.
    """
    if name in METHODS:
        raise ValueError(f"a growth method {name!r} exists already; choose another name")
    METHODS[name] = Method(
        name,
        summary,
        width=width,
        depth=depth,
        keeps_width=keeps_width,
        keeps_depth=keeps_depth,
        rescales=rescales,
        zero_gains=zero_gains,
        inherits=inherits,
        noise=noise,
        shrink=shrink,
        perturb=perturb,
    )
    return METHODS[name]


def method_named(name: str) -> Method:
    """Return a method by its name, or raise a ValueError that lists them."""
    known = METHODS.get(name) or METHODS.get(underscored(name))
    if known is None:
        near = difflib.get_close_matches(underscored(name).lower(), METHODS, n=1)
        meant = f"did you mean {near[0]!r}? There are" if near else "choose one of"
        own = "" if near else "; add one from Python with register_method"
        raise ValueError(f"growth method {name!r} is not known; {meant} {', '.join(METHODS)}{own}")
    return known


def underscored(name: str) -> str:
    """Return a name as it is known here, from one with hyphens, as on the command line.

    >>> method_named("llama-pro").name
    'llama_pro'
    """
    return name.replace("-", "_")
