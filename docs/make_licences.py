"""Lists the licences of what the package installs: `python docs/make_licences.py` writes docs/reference/licences.md.

What each package says of itself is read from its metadata, in the environment that runs this, extras left out.
"""

import tomllib
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "licences.md"

_INTRODUCTION = """\
# Licences of dependencies

<!-- Made by `python docs/make_licences.py`. -->

hf_progressive itself is under Apache-2.0. This is what a plain installation brings along, with the licence that each
package states, at the versions of `constraints.txt` on Linux with PyTorch for CPUs; builds for GPUs add libraries of
their makers (CUDA's are under NVIDIA's licence). Bold names are asked for by hf_progressive, the others by those.

| package | version | licence |
|---|---|---|
"""


def licence_of(found: Distribution) -> str:
    """Return what a package states: an expression, else its classifiers, else the first line of its licence field."""
    about = found.metadata
    if expression := about.get("License-Expression"):
        return expression
    classifiers = [text.rpartition(" :: ")[2] for text in about.get_all("Classifier") or [] if "License ::" in text]
    stated = (about.get("License") or "").strip().partition("\n")[0]
    return ", ".join(name for name in classifiers if name != "OSI Approved") or stated[:80] or "see its files"


def direct() -> list[Requirement]:
    """Return what pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(line) for line in project["dependencies"]]


def needed() -> dict[str, Distribution]:
    """Return everything that a plain installation brings along, by name."""
    found: dict[str, Distribution] = {}
    waiting, met = direct(), set()
    while waiting:
        asked = waiting.pop()
        name = canonicalize_name(asked.name)
        for extra in {"", *asked.extras}:
            if (name, extra) in met:
                continue
            met.add((name, extra))
            found[name] = distribution(name)
            further = (Requirement(line) for line in found[name].requires or [])
            waiting += [other for other in further if other.marker is None or other.marker.evaluate({"extra": extra})]
    return dict(sorted(found.items()))


def page() -> str:
    asked = {canonicalize_name(requirement.name) for requirement in direct()}
    rows = (
        f"| {f'**{name}**' if name in asked else name} | {found.version.partition('+')[0]} | {licence_of(found)} |"
        for name, found in needed().items()
    )
    return _INTRODUCTION + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
