"""Tokenizers: a byte-level BPE trained on the corpus or one loaded by name, and the bytes each token stands for."""

import copy
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_progressive.config import TokenizerConfig
from hf_progressive.config.ranges import class_of
from hf_progressive.hub.names import TOKENIZER_FILES
from hf_progressive.storage import ReadingFromOutside, read_json, require_own_file, require_plain_name

END_OF_TEXT = "<|endoftext|>"
"""The one special token of a tokenizer trained here: it begins and ends texts, and pads them."""

LONGEST_WORD = 1000
"""Characters of one kind without a break after which a word is cut for training a tokenizer: the time that takes is
quadratic in the length of a word, as of a protein, a DNA read or a line of dashes."""

_KINDS = (r"[^\W\d_]", r"\d", r"\s", r"[^\w\s]|_")
_LONG_RUN = re.compile("|".join(f"(?:{kind}){{{LONGEST_WORD + 1},}}" for kind in _KINDS))
_HALF_RUN = re.compile("|".join(f"(?:{kind}){{{LONGEST_WORD // 2}}}" for kind in _KINDS))

_FILE_KEYS = ("tokenizer_file", "vocab_file", "merges_file", "spm_file", "sp_model_file")

_PROBE = "def f(x):\n\t  return 'naïve ½ €' # 漢字 🙂  \r\n\x00" + "z" * 40
"""A text of many kinds of characters, whose bytes a tokenizer must account for."""


def load_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Load the tokenizer by name, or train it on `texts`, which are read for that alone."""
    if config.name is None:
        return train_tokenizer(texts, vocab_size=config.vocab_size, training_bytes=config.training_bytes)
    try:
        tokenizer = read_tokenizer(config.name, config.revision)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        here = "" if Path(config.name).exists() else f"; there is no folder {config.name} here either"
        raise ValueError(f"data.tokenizer.name: cannot load {config.name!r}: {reason.rstrip('.')}{here}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            f"data.tokenizer.name: {config.name} is {class_of(tokenizer)}, which the tokenizers library cannot "
            f"run; use one with a tokenizer.json"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"data.tokenizer.name: {config.name} has no end-of-text token to separate documents; "
            f"set its eos_token and save it"
        )
    try:
        token_byte_lengths(tokenizer)  # now, and not once the whole corpus has been tokenized
    except ValueError as error:
        raise ValueError(f"data.tokenizer.name: {error}") from None
    return tokenizer


def read_tokenizer(name: str | os.PathLike[str], revision: str | None = None) -> Any:
    """Load a tokenizer from a folder or the Hub.

    Raises:
        ValueError: Its files are not valid, ask to run code, or name or link to files elsewhere.
    """
    with ReadingFromOutside(str(name), "its tokenizer's files are damaged, or of a kind unknown here"):
        if Path(name).is_dir():
            _require_own_files(Path(name))
            if not any(path.is_file() for pattern in TOKENIZER_FILES for path in Path(name).glob(pattern)):
                raise FileNotFoundError(f"{name}: holds no tokenizer; save the model's own there")
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        for template in tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else ():
            require_plain_name(template, "its chat templates")  # each is saved as a file of that name
        return tokenizer


def _require_own_files(folder: Path) -> None:
    # What a tokenizer reads is saved with a run, and published.
    for path in sorted(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
        require_own_file(path, folder)
    settings = folder / "tokenizer_config.json"
    for key, value in read_json(settings).items() if settings.is_file() else ():
        if key in _FILE_KEYS and isinstance(value, str) and Path(value).exists():
            raise ValueError(f"{settings}: {key} names {value}, a file elsewhere; take the key out")


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, training_bytes: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, which can write every text and never meets an unknown character.

    The same texts give the same tokenizer; its end-of-text token is `bos_token`, `eos_token`, `unk_token` and
    `pad_token`. Source: Radford et al. 2019 (GPT-2), section 2.2, with its pattern of words.

    Args:
        texts: Documents, of which no more are read than needed.
        vocab_size: Entries, the 256 bytes and the end-of-text token included.
        training_bytes: UTF-8 bytes to read at the most.

    Raises:
        ValueError: The texts do not yield that many entries.

    >>> tokenizer = train_tokenizer(["to be or not to be"], vocab_size=260, training_bytes=1000)
    >>> tokenizer.decode(tokenizer("not to be")["input_ids"]), len(tokenizer)
    ('not to be', 260)
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    read = _first_bytes(texts, training_bytes)
    bpe.train_from_iterator((piece for text in read for piece in cut_long_words(text)), trainer)
    if bpe.get_vocab_size() < vocab_size:
        raise ValueError(
            f"data.tokenizer.vocab_size: the corpus yields {bpe.get_vocab_size()} entries only, not {vocab_size}; "
            f"lower vocab_size to that, or give more text"
        )
    # CTranslate2 asks for an unknown token, Trainer's collators for one to pad with; GPT-2's is this one.
    roles = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END_OF_TEXT)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **roles)


def cut_long_words(text: str) -> list[str]:
    """Cut a text where a word, as the tokenizer's pattern sees it, is longer than `LONGEST_WORD` characters.

    >>> [len(piece) for piece in cut_long_words("a" * 2500 + " dog")]
    [1000, 1000, 504]
    """
    # A longer word fills at least one of these stretches. Looking there alone is a hundred times as fast.
    if not any(_HALF_RUN.match(text, start) for start in range(0, len(text), LONGEST_WORD // 2)):
        return [text]
    cuts = [0]
    for run in _LONG_RUN.finditer(text):
        cuts += range(run.start() + LONGEST_WORD, run.end(), LONGEST_WORD)
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def without_padding(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Return the tokenizer, or where it pads with its end-of-text token, a copy that does not pad.

    A model whose configuration has that token for padding would neither draw nor train its embedding, which blocks of
    whole documents need.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id != tokenizer.eos_token_id:
        return tokenizer
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    return bare


def encode_documents(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Tokenize documents, each with an end-of-text token behind it.

    The name of a special token that occurs in a text is text like any other.
    """
    backend = tokenizer.backend_tokenizer
    # A call of the tokenizer sets these three each time, and costs a third more than going past it.
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
    return [[*encoding.ids, tokenizer.eos_token_id] for encoding in encodings]


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return a token table's rows, the largest id plus one: some tokenizers leave ids out."""
    ids: list[int] = list(tokenizer.get_vocab().values())
    return max(ids) + 1


def _first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    # Texts until they add up to so many UTF-8 bytes; the one that reaches it is the last.
    read = 0
    with tqdm(total=limit, desc="Training the tokenizer", unit="B", unit_scale=True) as bar:
        for text in texts:
            yield text
            size = len(text.encode("utf-8"))
            bar.update(size)
            read += size
            if read >= limit:
                return


def token_byte_lengths(tokenizer: PreTrainedTokenizerFast) -> npt.NDArray[np.int64]:
    """Return how many UTF-8 bytes of text each token stands for, (vocabulary,); 0 for special tokens.

    Byte-level tokens (GPT-2, Llama 3, Qwen) spell each byte as one character; SentencePiece tokens (Llama 2, Mistral)
    spell a space as `▁` and a lone byte as `<0x0A>`. Tokenizers of the second kind may put a space in front of a
    document, whose byte is counted with its first token. A tokenizer that normalises its input (Unicode NFC) is
    counted by the text as normalised.

    Raises:
        ValueError: The tokenizer is of another kind, or loses text, so that bits per byte would be meaningless.

    >>> tokenizer = train_tokenizer(["aaaa aaaa"], vocab_size=258, training_bytes=100)
    >>> lengths = token_byte_lengths(tokenizer)
    >>> int(lengths[tokenizer.eos_token_id]), int(lengths[tokenizer("aa")["input_ids"]].sum())
    (0, 2)
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        wanted = "one of the tokenizers library, such as AutoTokenizer.from_pretrained(...) returns, is needed"
        raise ValueError(f"tokenizer is {class_of(tokenizer)}; {wanted}")
    kinds = _decoder_kinds(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"])
    lengths = np.zeros(vocabulary_size(tokenizer), dtype=np.int64)
    added = {index: entry.content for index, entry in tokenizer.added_tokens_decoder.items()}
    special = set(tokenizer.all_special_ids)
    special |= {index for index, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    for token, index in tokenizer.get_vocab().items():
        if index in special:
            continue
        if index in added or "ByteLevel" not in kinds:
            lengths[index] = _spelled_bytes(token)
        else:
            lengths[index] = len(token)
    ids = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    expected, found = len(_PROBE.encode("utf-8")), int(lengths[ids].sum())
    # A SentencePiece tokenizer may add one space in front.
    if found != expected and not (found == expected + 1 and "ByteLevel" not in kinds):
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__!r} accounts for {found} of the "
            f"{expected} bytes of a test text; use one that keeps every byte (byte-level BPE, or byte fallback)"
        )
    return lengths


def _decoder_kinds(decoder: dict[str, Any] | None) -> set[str]:
    if decoder is None:
        return set()
    return {decoder["type"]}.union(*(_decoder_kinds(part) for part in decoder.get("decoders", [])))


def _spelled_bytes(token: str) -> int:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return 1
    return len(token.replace("▁", " ").encode("utf-8"))
