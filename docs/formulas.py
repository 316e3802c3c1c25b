"""A hook of mkdocs: formulas become MathML while the site is built, so that pages need no script and no network."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.+?)\\[)\]]</\1>', re.DOTALL)

# Where a browser has no font for mathematics, a prime in a superscript is raised twice, and lost below a fraction bar.
_PRIMED = re.compile(r"<msup>(<mi>\w+</mi>)<mi>&#x02032;</mi></msup>")
_BESIDE = r'<mrow>\1<mo form="postfix" lspace="0" rspace="0" stretchy="false">&#x02032;</mo></mrow>'


def on_page_content(content: str, **_: Any) -> str:
    """Replace what `pymdownx.arithmatex` has marked in a page's HTML."""
    return _FORMULA.sub(_as_mathml, content)


def _as_mathml(match: "re.Match[str]") -> str:
    kind, bracket, formula = match.groups()
    mathml: str = convert(html.unescape(formula).strip(), display="block" if bracket == "[" else "inline")
    return f"<{kind}>{_PRIMED.sub(_BESIDE, mathml)}</{kind}>"
