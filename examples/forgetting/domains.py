"""Texts of domains that are at hand: English and Python of every installation, an invented language, a natural one.

The natural one is what programs say in a language: the catalogues of translated messages that come with them.
"""

import ast
import random
import re
import struct
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pyarrow.parquet
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_progressive.data.documents import stdlib_texts

CONTEXT = 64
_SHORTEST_DOCSTRING = 200
_SHORTEST_MESSAGE, _MESSAGES_PER_DOCUMENT = 40, 20
_CATALOGUE_MAGIC = b"\xde\x12\x04\x95"
_HTML_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"

INSTALLED_CATALOGUES = (
    Path(sysconfig.get_path("purelib")),
    *dict.fromkeys(Path(root) / "share" / "locale" for root in (sys.prefix, "/usr")),
)
"""Where installed packages and the system's programs have their catalogues."""


def split_source(source: str) -> tuple[list[str], str]:
    """Return a module's docstrings, which are English, and its code without docstrings and comments."""
    tree = ast.parse(source)
    prose = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is None:
                continue
            if len(text) >= _SHORTEST_DOCSTRING:
                prose.append(text)
            node.body[0] = ast.Pass()
    return prose, ast.unparse(tree)


def library_texts(characters: int) -> tuple[list[str], list[str]]:
    """Return documents of English and of Python from the standard library, up to a number of characters each."""
    prose: list[str] = []
    code: list[str] = []
    for source in stdlib_texts():
        if min(sum(map(len, code)), sum(map(len, prose))) >= characters:
            break
        try:
            docstrings, rest = split_source(source)
        except SyntaxError:  # the library's tests hold some on purpose
            continue
        code += [rest] if sum(map(len, code)) < characters else []
        prose += docstrings
    return prose, code


@cache
def invented_word(word: str) -> str:
    """Return the word of the invented language for one of English, of about its length.

    >>> invented_word("language") == invented_word("language") != invented_word("languages")
    True
    """
    draw = random.Random(word)
    syllables = "".join(draw.choice(_CONSONANTS) + draw.choice(_VOWELS) for _ in range((len(word) + 1) // 2))
    return syllables[: max(1, len(word))]


def in_invented_language(text: str) -> str:
    """Say a text in a language whose words share nothing with English, and whose order is the other way round.

    >>> len(in_invented_language("All men are mortal.").split())
    4
    """
    lines = []
    for line in text.splitlines():
        words = re.findall(r"\w+|[^\w\s]+", line)[::-1]
        lines.append(" ".join(invented_word(word.lower()) if word.isalpha() else word for word in words))
    return "\n".join(lines)


def translated_texts(language: str, characters: int, folders: Sequence[Path] = INSTALLED_CATALOGUES) -> list[str]:
    """Return documents of a natural language, up to a number of characters: what programs say in it.

    Args:
        language: A locale's name, such as "fr" or "de".
        characters: At most so many, and one document more.
        folders: Where catalogues are looked for, at any depth, as LANGUAGE/LC_MESSAGES/*.mo.

    Raises:
        ValueError: There is no message of that language.
    """
    documents: list[str] = []
    seen: set[str] = set()
    for path in (path for root in folders for path in sorted(root.rglob(f"{language}/LC_MESSAGES/*.mo"))):
        messages = [text for text in dict.fromkeys(_translations(path.read_bytes())) if text not in seen]
        seen.update(messages)
        for start in range(0, len(messages), _MESSAGES_PER_DOCUMENT):
            if sum(map(len, documents)) >= characters:
                return documents
            documents.append("\n".join(messages[start : start + _MESSAGES_PER_DOCUMENT]))
    if not documents:
        places = ", ".join(map(str, folders))
        raise ValueError(
            f"no messages in {language!r} are in {places}; pass other --catalogues, or --language with a text"
        )
    return documents


def _translations(catalogue: bytes) -> Iterator[str]:
    # Of a GNU message catalogue in UTF-8, the sentences that are translated; plurals lie behind a zero byte.
    order = "<" if catalogue[:4] == _CATALOGUE_MAGIC else ">"
    count, *tables = struct.unpack_from(f"{order}3I", catalogue, 8)
    for index in range(count):
        places = (struct.unpack_from(f"{order}2I", catalogue, table + 8 * index) for table in tables)
        original, translated = (catalogue[start : start + length].partition(b"\0")[0] for length, start in places)
        text = _HTML_TAG.sub(" ", translated.decode("utf-8", errors="replace"))
        if len(text) >= _SHORTEST_MESSAGE and original not in (b"", translated) and "\ufffd" not in text:
            yield text


def read_texts(path: Path, characters: int) -> Iterator[str]:
    """Yield documents of a .txt file or of a .parquet file's `text` column."""
    texts = (
        pyarrow.parquet.read_table(path, columns=["text"])["text"].to_pylist()
        if path.suffix == ".parquet"
        else path.read_text(encoding="utf-8").split("\n\n")
    )
    for text in texts:
        if characters <= 0:
            return
        characters -= len(text)
        yield text


def pack(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], held_out: int) -> tuple[Tensor, Tensor]:
    """Return training and validation blocks (n, CONTEXT) of token ids; every tenth document is held out.

    Raises:
        ValueError: The texts are too short to fill a block of either.
    """
    parts: tuple[list[int], list[int]] = ([], [])
    for index, text in enumerate(texts):
        parts[index % 10 == 9].extend([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
    if min(map(len, parts)) < CONTEXT:
        raise ValueError(
            f"{len(texts)} documents fill no block of {CONTEXT} tokens to train on, or to hold out; give more"
        )
    train, validation = (torch.tensor(ids[: len(ids) // CONTEXT * CONTEXT]).view(-1, CONTEXT) for ids in parts)
    return train, validation[:held_out]
