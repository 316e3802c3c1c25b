"""Whether a checkpoint's tensors are those of its config: which are missing, unknown or of another shape, and why."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hf_progressive.growth.family_table import Family
from hf_progressive.growth.target import MOST_LAYERS
from hf_progressive.growth.unmerged import describe_wrapper

_FAULTS_TOLD = 12
_EXPLANATIONS_TOLD = 2

Shapes = Mapping[str, Sequence[int]]


def describe_misfit(family: Family, config: Any, shapes: Shapes) -> str | None:
    """Say which tensors of a checkpoint are not the config's, and which field explains it; None if all fit.

    Args:
        family: The config's.
        config: What config.json says.
        shapes: By the names of the files, or of the stock class, without fused experts.
    """
    layers = family.sizes(config).layers
    if layers > MOST_LAYERS:
        return f"{family.size_fields['layers']} is {layers:,}; {MOST_LAYERS:,} are the most that growth plans"
    expected, ignored = dict(family.stored(config)), set(family.ignored_names(config))
    found: dict[str, tuple[int, ...]] = {}
    faults = []
    for key, shape in shapes.items():
        name = family.canonical_name(key)
        if name in ignored:
            continue
        if name in found:
            faults.append(f"{name} is there twice, with and without the prefix {family.prefix!r}")
        elif name not in expected:
            faults.append(f"{key} is not a tensor of {family.model_type}")
        elif tuple(shape) != expected[name]:
            faults.append(f"{key} has shape {tuple(shape)}, the config says {expected[name]}")
        found[name] = tuple(shape)
    faults += [f"{name} is missing" for name in expected if name not in found]
    if not faults:
        return None
    explained = list(_explanations(family, config, {family.canonical_name(key): s for key, s in shapes.items()}))
    told = " or ".join(explained[:_EXPLANATIONS_TOLD])
    return describe_wrapper(shapes) or counted(faults) + (f"; all would fit with {told}" if told else "")


def counted(faults: Sequence[str]) -> str:
    """Say of so many tensors that they do not fit, the first of them one by one.

    >>> counted(["ln_f.bias is missing"])
    '1 tensor does not fit the config: ln_f.bias is missing'
    """
    more = f"; and {len(faults) - _FAULTS_TOLD} more" if len(faults) > _FAULTS_TOLD else ""
    many = "1 tensor does" if len(faults) == 1 else f"{len(faults)} tensors do"
    return f"{many} not fit the config: {'; '.join(faults[:_FAULTS_TOLD])}{more}"


# Changes of the config with which it would be that of the tensors: another number of layers, or value of one field.
def _explanations(family: Family, config: Any, shapes: Shapes) -> Iterator[str]:
    layers, held = family.size_fields["layers"], _layers_held(family, shapes)
    deeper = [{layers: held}] if held not in (0, getattr(config, layers)) else []
    others = list(_other_values(family, config, shapes))
    for changes in (*deeper, *others, *(deeper[0] | other for other in others if deeper)):
        changed = copy.deepcopy(config)
        with contextlib.suppress(ValueError, TypeError, LookupError, ArithmeticError):  # no config of this family
            for name, value in changes.items():
                setattr(changed, name, value)
            ignored = set(family.ignored_names(changed))
            if dict(family.stored(changed)) == {name: tuple(s) for name, s in shapes.items() if name not in ignored}:
                yield " and ".join(f"{name} {value} (now {getattr(config, name)})" for name, value in changes.items())


def _layers_held(family: Family, shapes: Shapes) -> int:
    prefix = next(rule.name for rule in family.rules if rule.per_layer).partition("{layer}")[0]
    indices = (name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix))
    return max(
        (int(index) + 1 for index in indices if index.isdecimal() and len(index) < len(str(MOST_LAYERS))), default=0
    )


def _other_values(family: Family, config: Any, shapes: Shapes) -> Iterator[dict[str, Any]]:
    switches = {rule.when for rule in family.rules if isinstance(rule.when, str) and rule.when}
    for name in sorted(switches | {"tie_word_embeddings"}):
        yield {name: not getattr(config, name)}
    expected = dict(family.stored(config))
    differing = (
        [(there, here) for there, here in zip(shapes[name], shape, strict=True) if there != here]
        for name, shape in expected.items()
        if len(shapes.get(name, ())) == len(shape)
    )
    sizes = asdict(family.sizes(config))
    # One field that explains all explains the first tensor that differs: in proportion, or by as many more.
    for there, here in next(filter(None, differing), []):
        for size, name in family.size_fields.items():
            of_ratio = [sizes[size] * there // here] if sizes[size] * there % here == 0 else []
            for value in dict.fromkeys((*of_ratio, sizes[size] + there - here)):
                if value > 0 and hasattr(config, name):
                    yield {name: value}
