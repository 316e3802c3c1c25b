"""Names: of a checkpoint's files, of a rung's, and of repositories on the Hub."""

import re
from fnmatch import fnmatchcase

from hf_progressive.config.credentials import TOKEN
from hf_progressive.storage import MANIFEST_NAME

CONFIG_NAME = "config.json"
"""Name of a model's configuration."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
"""Patterns of the files that a tokenizer is made of."""

LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
"""Patterns of the files with which a model's licence asks to be passed on."""

COMPANIONS = ("generation_config.json", *TOKENIZER_FILES, *LICENCE_FILES)
"""Patterns of the files that a grown checkpoint takes over unchanged; all others stay behind."""

RECORD_NAME = "rung.json"
"""Name of a rung's record."""

RUNG_FILES = (
    CONFIG_NAME,
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    *TOKENIZER_FILES,
    "growth.json",
    RECORD_NAME,
    "phi/fisher.safetensors",
    "phi/subspace.safetensors",
)
"""Patterns of the files of a rung's folder that are published, beside its licences. All else stays at home."""

CARD, PLOT, GROWTH, RESULTS = "README.md", "plots/curve.png", "growth.json", ".eval_results/bits_per_byte.yaml"
"""Names of the files that are made for the repository."""

PUBLISHED = (*RUNG_FILES, CARD, PLOT, RESULTS, MANIFEST_NAME)
"""Patterns of everything a repository gets from here, and of all that an older revision may have left there. A licence
is not among them: one that is only in the repository is its owner's."""

_REPO_ID = re.compile(r"(?!.*(--|\.\.|\.git$))(\w([\w.-]*\w)?/)?\w([\w.-]*\w)?", re.ASCII)
_LONGEST_REPO_ID = 96  # characters, huggingface_hub's own limit


def is_published(name: str) -> bool:
    """Tell whether a file of a repository is one that publishing writes; it leaves the others alone.

    >>> is_published("model-00001-of-00003.safetensors"), is_published("training_args.bin")
    (True, False)
    """
    return any(fnmatchcase(name, pattern) for pattern in PUBLISHED)


def is_repo_id(name: str) -> bool:
    """Tell whether the Hub could have a repository of that name, ORG/NAME or, of an old one, NAME alone.

    A token in place of a name is none: it would be asked for, and stand in logs.
    """
    is_one = len(name) <= _LONGEST_REPO_ID and _REPO_ID.fullmatch(name) is not None
    return is_one and TOKEN.search(name) is None


def check_repo_id(repo_id: str) -> None:
    """Raise a ValueError unless a repository's name is ORG/NAME, as the Hub could accept it."""
    if "/" not in repo_id or not is_repo_id(repo_id):
        raise ValueError(
            f"{repo_id!r} is no repository's name; give ORG/NAME in letters, digits, '-', '_' and '.', without '--'"
            f" and '..', {_LONGEST_REPO_ID} characters at the most"
        )
