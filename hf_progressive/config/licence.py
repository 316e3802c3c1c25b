"""Identifiers of licences on the Hub, which refuses a model card with any other text in its `license`.

The Hub adds to its list, and huggingface_hub does not carry it. So a text is refused here only where it cannot be an
identifier, or is one of these written otherwise; the rest the Hub decides on.
"""

import difflib
import re
from typing import Final

from hf_progressive.config.checks import require

KNOWN: Final = (
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0",
    "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0",
    "etalab-2.0", "eupl-1.1", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0",
    "isc", "lppl-1.3c", "ms-pl", "mpl-2.0", "odc-by", "odbl", "openrail++", "osl-3.0", "postgresql", "ofl-1.1",
    "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr", "deepfloyd-if-license", "llama2", "gemma", "unknown", "other",
)  # fmt: skip
"""From https://github.com/huggingface/hub-docs/blob/008d54d/docs/hub/repositories-licenses.md."""

_IDENTIFIER: Final = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_ALIKE: Final = 0.75


def _unmarked(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.removesuffix(".0"))  # apache2 and gpl-3 as apache-2.0 and gpl-3.0


def require_licence(text: str | None) -> None:
    """Refuse a text that is no identifier of a licence on the Hub, with the nearest one.

    Raises:
        ValueError: The text cannot be one, or is a known one misspelt or without its version.
    """
    if text is None or text in KNOWN:
        return
    lower = text.lower()
    begun = [name for name in KNOWN if lower and name.startswith(lower)]
    same_version = [name for name in KNOWN if re.findall(r"\d", name) == re.findall(r"\d", lower)]
    unmarked = [name for name in KNOWN if name != text and _unmarked(name) == _unmarked(lower)]
    near = [*begun, *unmarked, *difflib.get_close_matches(lower, same_version, n=1, cutoff=_ALIKE)]
    meant = f"did you mean {near[0]!r}?" if near else "give one such as 'apache-2.0', or 'other' for one of your own"
    require(
        not near and _IDENTIFIER.fullmatch(text) is not None,
        f"license: {text!r} is no identifier of a licence on the Hub"
        f" (https://huggingface.co/docs/hub/repositories-licenses); {meant}",
    )
