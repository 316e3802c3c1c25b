"""What a rung's repository on the Hub is called, and which files it holds."""

import re
from fnmatch import fnmatchcase

from hf_progressive.growth.source import TOKENIZER_FILES
from hf_progressive.storage import MANIFEST_NAME

RECORD_NAME = "rung.json"
"""Name of a rung's record."""

RUNG_FILES = (
    "config.json",
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
"""Patterns of the files of a rung's folder that are published. Whatever is not on this list stays at home."""

CARD, PLOT, GROWTH, RESULTS = "README.md", "plots/curve.png", "growth.json", ".eval_results/bits_per_byte.yaml"
"""Names of the files that are made for the repository."""

PUBLISHED = (*RUNG_FILES, CARD, PLOT, RESULTS, MANIFEST_NAME)
"""Patterns of everything a repository gets from here, and of all that an older revision may have left there."""

_REPO_ID = re.compile(r"(?!.*(--|\.\.|\.git$))[A-Za-z0-9_]([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)
_LONGEST_REPO_ID = 96  # characters, huggingface_hub's own limit


def is_published(name: str) -> bool:
    """Tell whether a file of a repository is one that publishing writes.

    Args:
        name: Its name in the repository.

    Returns:
        False for files that others put there, which publishing leaves alone.

    >>> is_published("model-00001-of-00003.safetensors"), is_published("training_args.bin")
    (True, False)
    """
    return any(fnmatchcase(name, pattern) for pattern in PUBLISHED)


def check_repo_id(repo_id: str) -> None:
    """Raise unless a repository's name is one that the Hub could accept, with its namespace.

    Args:
        repo_id: The name.

    Raises:
        ValueError: It is not ORG/NAME.
    """
    if len(repo_id) > _LONGEST_REPO_ID or not _REPO_ID.fullmatch(repo_id):
        raise ValueError(
            f"{repo_id!r} is no repository's name; give ORG/NAME in letters, digits, '-', '_' and '.', without '--'"
            f" and '..', {_LONGEST_REPO_ID} characters at the most"
        )
