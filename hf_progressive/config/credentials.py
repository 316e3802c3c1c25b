"""Credentials have no place in a configuration: it is written into the run folder, and published with the run."""

import os
import re
from collections.abc import Mapping
from typing import Any

TOKEN = re.compile(r"\bhf_(?:oauth_|jwt_|app_)?[A-Za-z0-9]{30,}")
"""An access token, as the Hub issues them."""

_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SHORTEST_TOKEN = 8
_SECRET_KEY = re.compile(r"(?:^|[._])(?:token|api_key|password|secret)$", re.IGNORECASE)
# A tokenizer's special tokens are no secrets.
_SPECIAL_TOKEN = re.compile(
    r"(?:^|[._])(?:bos|eos|pad|unk|sep|cls|mask|image|audio|video|boi|eoi|decoder_start)_token$", re.IGNORECASE
)
_ADVICE = (
    "a credential, which would be written into the run folder; take it out and set the HF_TOKEN environment variable,"
    " or log in with `hf auth login`"
)


def refuse_credentials(value: Any, path: str = "") -> None:
    """Raise if plain values, at a dotted path, hold a Hub token or another credential; the message does not repeat it.

    A key that is a credential's with text for a value is refused, and any text that holds what looks like a token.

    >>> refuse_credentials({"training": {"arguments": {"hub_token": "very secret"}}})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: training.arguments.hub_token: holds a credential, which would be written into the run folder; ...
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            if TOKEN.search(str(key)):
                raise ValueError(f"{path or 'the top level'}: one of its keys is {_ADVICE}")
            here = f"{path}.{key}" if path else str(key)
            if _SECRET_KEY.search(here) and not _SPECIAL_TOKEN.search(here) and isinstance(item, str) and item:
                raise ValueError(f"{here}: holds {_ADVICE}")
            refuse_credentials(item, here)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            refuse_credentials(item, f"{path}.{index}")
    elif isinstance(value, str) and TOKEN.search(value):
        raise ValueError(f"{path or 'the configuration'}: holds {_ADVICE}")


def without_tokens(text: str) -> str:
    """Return a text in which Hub tokens, and whatever HF_TOKEN holds, are blacked out.

    >>> without_tokens("no access with hf_" + "a" * 34)
    'no access with hf_***'
    """
    for name in _TOKEN_VARIABLES:
        own = os.environ.get(name, "")
        if len(own) >= _SHORTEST_TOKEN:  # a shorter one is a mistake, and may be a part of any word
            text = text.replace(own, "***")
    return TOKEN.sub("hf_***", text)
