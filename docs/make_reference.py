"""Write the pages of docs/reference that follow from the code: configuration keys, the command line, the Python API.

python docs/make_reference.py            # write them
python docs/make_reference.py --check    # exit with 1 and name a page that is not up to date
"""

import argparse
import ast
import dataclasses
import inspect
import math
import re
import sys
import typing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hf_progressive
from hf_progressive.cli.parser import build_parser
from hf_progressive.config import (
    CoreConfig,
    DataConfig,
    FisherConfig,
    GrowthConfig,
    LadderConfig,
    LearningRatesConfig,
    ModelConfig,
    PhiConfig,
    PublishConfig,
    RecipeConfig,
    RungConfig,
    StudyConfig,
    SubspaceConfig,
    TokenizerConfig,
    TrainingConfig,
    TrunkConfig,
)
from hf_progressive.config.ranges import Range
from hf_progressive.growth.families import FAMILIES
from hf_progressive.growth.family_table import Family
from hf_progressive.growth.mixtures import MIXTURES

REFERENCE = Path(__file__).parent / "reference"
MADE = "<!-- Made by `python docs/make_reference.py`; change the code's own texts instead. -->\n"

SECTIONS: dict[str, type] = {
    "The ladder": LadderConfig,
    "model": ModelConfig,
    "rungs": RungConfig,
    "data": DataConfig,
    "data.tokenizer": TokenizerConfig,
    "growth": GrowthConfig,
    "phi": PhiConfig,
    "phi.fisher": FisherConfig,
    "phi.subspace": SubspaceConfig,
    "training": TrainingConfig,
    "trunk": TrunkConfig,
    "core": CoreConfig,
    "publish": PublishConfig,
}
STUDY_SECTIONS: dict[str, type] = {
    "A study": StudyConfig,
    "recipes": RecipeConfig,
    "learning_rates": LearningRatesConfig,
}


def field_texts(cls: type) -> dict[str, str]:
    """The text under each field of a class, on one line."""
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            texts[field.target.id] = " ".join(str(text.value.value).split())
    return texts


MOST_TOLD = 10_000_000
"""Of a larger limit, the table says nothing: it only keeps out what is no number of anything."""


def kind(hint: Any) -> str:
    """What a value is, in the words of YAML."""
    if typing.get_origin(hint) is typing.Annotated:
        base, *marks = typing.get_args(hint)
        ranges = [mark for mark in marks if isinstance(mark, Range)]
        told = [replace(mark, maximum=math.inf) if mark.maximum > MOST_TOLD else mark for mark in ranges]
        return kind(base) + "".join(f", {mark}" for mark in told)
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(hint))
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return f"list of {kind(arguments[0])}"
    if typing.get_origin(hint) is dict:
        return "mapping"
    if arguments:
        return " or ".join(kind(each) for each in arguments if each is not type(None))
    if dataclasses.is_dataclass(hint):
        return "section"
    names = {int: "whole number", float: "number", str: "text", bool: "`true`, `false`"}
    return names.get(hint, "value")


def default(field: "dataclasses.Field[Any]") -> str:
    """The value of a key that is left out."""
    if field.default_factory is not dataclasses.MISSING:
        return "" if dataclasses.is_dataclass(field.default_factory) else "none"
    if field.default is dataclasses.MISSING:
        return "**required**"
    if field.default is None or field.default == ():
        return "none"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def section(title: str, cls: type, path: str) -> Iterator[str]:
    texts, hints = field_texts(cls), typing.get_type_hints(cls, include_extras=True)
    yield f"## {f'`{path}`' if path else title}\n"
    yield f"{' '.join((cls.__doc__ or '').split())}\n"
    yield "| key | value | default | meaning |\n|---|---|---|---|"
    for field in dataclasses.fields(cls):
        if field.name in texts:
            text = texts[field.name].replace("|", "\\|")
            yield f"| `{field.name}` | {kind(hints[field.name])} | {default(field)} | {text} |"
    yield ""


def configuration() -> str:
    lines = [
        "# Configuration keys\n",
        MADE,
        "A ladder's YAML holds the sections below; a study's holds a ladder and says what to vary. Unknown keys,",
        "wrong types and values out of range are refused in one line that names the dotted path. On the command line",
        "`--set training.learning_rate=1e-3` changes a key. `cold` everywhere means trained from scratch.\n",
    ]
    for title, cls in SECTIONS.items():
        lines += section(title, cls, "" if cls is LadderConfig else title)
    for title, cls in STUDY_SECTIONS.items():
        lines += section(title, cls, "" if cls is StudyConfig else title)
    return "\n".join(lines).rstrip() + "\n"


def option_row(action: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar}`"
    if action.option_strings and action.nargs != 0:
        value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        value = "\\|".join(str(choice) for choice in action.choices) if action.choices else value
        names += f" `{value}`{' …' if action.nargs == '+' else ''}"
    text = (action.help or "") % {"default": action.default, "prog": "hf-progressive"}
    return f"| {names} | {text.replace('|', chr(92) + '|')} |"


def command_line() -> str:
    parser = build_parser()
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    lines = [
        "# Command line\n",
        MADE,
        "`hf-progressive COMMAND …`, or `python -m hf_progressive COMMAND …`; below `accelerate launch`, after `-m`.",
        "Progress and logs go to stderr. With `--json` the last line on stdout is one JSON object.",
        f"{parser.epilog}\n",
    ]
    for name, sub in commands.choices.items():
        lines += [f"## {name}\n", f"{sub.description}\n", "| argument | meaning |\n|---|---|"]
        lines += [option_row(action) for action in sub._actions if "--help" not in action.option_strings]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def python_api() -> str:
    lines = [
        "# Python API, in full\n",
        MADE,
        "Every name is imported from `hf_progressive`; [the API by purpose](../api.md) shows them in use.\n",
    ]
    for name in sorted(hf_progressive.__all__, key=str.lower):
        thing = getattr(hf_progressive, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            lines.append(f"::: {thing.__module__}.{thing.__qualname__}\n")
    return "\n".join(lines).rstrip() + "\n"


_NORMS = {"layer": "LayerNorm", "rms": "RMSNorm", "weightless_rms": "RMSNorm without gain"}
_QUERY_NORMS = {False: "–", True: "over each head", "all_heads": "over all heads: copies of all, or new query heads"}


def positions_of(family: Family) -> str:
    """How positions enter."""
    if not family.rotary:
        return "learned"
    turned = "rotations of a part of each head" if family.partial_rotary else "rotations"
    return f"{turned}, or slopes (`{family.alibi}`)" if family.alibi else turned


def families() -> str:
    lines = [
        "# Families\n",
        MADE,
        "What `grow` and ladders know, by the config's `model_type`; [a further one](../how_to/family.md) is a table.",
        "Width, depth, heads, key/value heads, MLP, vocabulary and context grow together, tied and untied; a",
        "larger `head_dim` where it is exact. What is not exact is refused with the reason.\n",
        "| `model_type` | models | norms | norms of queries and keys | positions | refused |",
        "|---|---|---|---|---|---|",
    ]
    for family in (FAMILIES | MIXTURES).values():
        norms = _NORMS[family.norm]
        norms += "" if family.eps_field else ", ε fixed: the stream is rescaled"
        before = any("gain" in dim.axes for rule in family.rules for dim in rule.dims)
        norms += f", {'before and ' if before else ''}behind attention and MLP" if family.closes_by_gain else ""
        refused = [f"`{name}`" for name in family.unsupported] + [f"`{name}: false`" for name in family.required]
        refused += [f"`{name}` other than `{family.size_fields[size]}`" for name, size in family.repeats.items()]
        row = (
            f"`{family.model_type}`",
            (family.title or family.model_type) + (", a mixture of experts" if family.has_experts else ""),
            norms,
            _QUERY_NORMS[family.normed_queries],
            positions_of(family),
            ", ".join(refused) or "–",
        )
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


PAGES = {
    "families.md": families,
    "configuration.md": configuration,
    "command_line.md": command_line,
    "python.md": python_api,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the pages of docs/reference that follow from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is out of date")
    check = parser.parse_args().check
    stale = []
    for name, make in PAGES.items():
        text, path = re.sub(r"\n{3,}", "\n\n", make()), REFERENCE / name
        if check:
            stale += [name] if not path.exists() or path.read_text(encoding="utf-8") != text else []
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.exit(f"docs/reference: {', '.join(stale)} not up to date; run python docs/make_reference.py")


if __name__ == "__main__":
    main()
