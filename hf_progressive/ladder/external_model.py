"""Taking a model trained elsewhere over as a ladder's first rung: its files, what it has read, what it scores here."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_progressive import storage
from hf_progressive.config import TrainingConfig
from hf_progressive.data import Corpus, token_byte_lengths
from hf_progressive.evaluation.bits_per_byte import bits_per_byte
from hf_progressive.hub.names import RECORD_NAME
from hf_progressive.records.origin import Origin
from hf_progressive.training.precision import evaluation_precision

_ORDER = ("fingerprint", "block_tokens", "shuffle_seed")
"""What must be equal for two corpora to hold the same blocks in the same order."""


def copy_origin(origin: Origin, folder: Path, tokenizer: Any) -> None:
    """Copy a model's files, checked against what is known of them.

    Nothing is linked: the source belongs to somebody else, or to the Hub's cache.

    Args:
        origin: The model, with its weights.
        folder: The folder to create or replace, whole or not at all. The record stays behind.
        tokenizer: The corpus's tokenizer, which goes along where the model has none of its own.

    Raises:
        ValueError: A file is damaged, or there are no safetensors weights.
    """
    names = [name for name in origin.files() if name != RECORD_NAME]
    if not any(name.startswith("model") and name.endswith(".safetensors") for name in names):
        raise ValueError(f"{origin}: has no safetensors weights; convert it, or take another")
    digests: dict[str, str | None] = {**origin.checkpoint.digest(names)}
    with storage.atomic_folder(folder, overwrite=True, sha256=digests) as temporary:
        for name in names:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin.folder / name, temporary / name)
        if origin.read_tokenizer() is None:
            tokenizer.save_pretrained(temporary)


def data_read(origin: Origin, corpus: Corpus) -> Mapping[str, Any]:
    """Tell what a model was trained on, as a rung's record does.

    Args:
        origin: The model.
        corpus: The ladder's corpus.

    Returns:
        The span of this corpus if it read that; otherwise what its own record says, or that nothing is known.
    """
    if origin.record is None:
        return {**corpus.span(0, 0), **dict.fromkeys(_ORDER), "source": "unknown", "corpus_blocks": None}
    data: Mapping[str, Any] = origin.record["data"]
    return corpus.span(data["first_block"], data["blocks"]) if _is_same(data, corpus) else data


def first_new_block(origin: Origin, corpus: Corpus) -> int:
    """Return the first block of the corpus that neither a model nor its ancestors have read.

    Args:
        origin: The model.
        corpus: The ladder's corpus.

    Returns:
        The block; 0 where the model was trained on another corpus or an unknown one.
    """
    if origin.record is None or not _is_same(origin.record["data"], corpus):
        return 0
    data = origin.record["data"]
    return int(data["first_block"] + data["blocks"])


def _is_same(data: Mapping[str, Any], corpus: Corpus) -> bool:
    own = corpus.span(0, 0)
    return all(data.get(key) == own[key] for key in _ORDER)


def measure_origin(
    checkpoint: Path, corpus: Corpus, training: TrainingConfig, state: PartialState
) -> dict[str, float]:
    """Measure a model on the ladder's validation documents.

    Args:
        checkpoint: The model's folder.
        corpus: The corpus.
        training: How the rungs are trained: this model is measured in the same precision. On a CPU, where the size of
            a batch is not chosen by memory, it is the micro-batch's.
        state: The processes; each of them measures all of it.

    Returns:
        `loss` and `bits_per_byte`, as every rung's record has them.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with evaluation_precision(training, state.device):
        return bits_per_byte(
            model.to(state.device),
            corpus.validation,
            token_byte_lengths(corpus.tokenizer),
            batch_size=training.micro_batch_size if state.device.type == "cpu" else None,
            progress=state.is_main_process,
        )
