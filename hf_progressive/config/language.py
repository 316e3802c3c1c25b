"""Codes of languages on the Hub, which refuses a model card with any other text in its `language`."""

import re
from collections.abc import Iterable
from typing import Final

from hf_progressive.config.checks import require

_CODE: Final = re.compile(r"[a-z]{2,3}|code|multilingual")


def require_languages(codes: Iterable[str]) -> None:
    """Refuse a text that is no code of a language on the Hub: ISO 639-1, -2 or -3, `code` or `multilingual`.

    Raises:
        ValueError: The text cannot be one; whether two or three letters name a language, the Hub decides.
    """
    require(not isinstance(codes, str), f"language: is the text {codes!r}; give a list of codes, [{codes!r}]")
    for code in codes:
        require(
            _CODE.fullmatch(code) is not None,
            f"language: {code!r} is no ISO 639 code, two or three small letters; give one such as 'en', or 'code' for"
            f" programs",
        )
