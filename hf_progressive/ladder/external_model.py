"""The steps of a first rung that was trained elsewhere: its files, what it has read, what it scores here."""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_progressive import storage
from hf_progressive.config.ranges import shown
from hf_progressive.data import Corpus, token_byte_lengths
from hf_progressive.distributed.processes import main_process_first
from hf_progressive.evaluation.bits_per_byte import bits_per_byte
from hf_progressive.growth import plan_growth
from hf_progressive.growth.parent import ParentTensors
from hf_progressive.growth.reader import CheckpointReader
from hf_progressive.growth.stock_model import TORCH_ATTENTION, TORCH_EXPERTS
from hf_progressive.hub.names import CONFIG_NAME, RECORD_NAME
from hf_progressive.ladder.record_builder import origin_record
from hf_progressive.ladder.rung_work import RungWork
from hf_progressive.planning.ladder_plan import LadderPlan
from hf_progressive.records.origin import Origin, locate_origin
from hf_progressive.records.rung import DataUse
from hf_progressive.training.precision import evaluation_precision

logger = logging.getLogger(__name__)

_ORDER = ("fingerprint", "block_tokens", "shuffle_seed")
"""What must be equal for two corpora to hold the same blocks in the same order."""

_CHOICES = {"attn_implementation": TORCH_ATTENTION, "experts_implementation": TORCH_EXPERTS}
"""By what names, or these after a `_`, a config.json may choose how a part is computed, and which choices are at hand
wherever torch is."""


def copy(work: RungWork) -> None:
    """Fetch the model and copy its files into the run folder."""
    run, first = work.run, work.run.config.rungs[0]
    assert first.source is not None
    with main_process_first(run.state):
        work.origin = locate_origin(first.source, first.revision)
        if run.state.is_main_process:
            _copy_files(work.origin, work.trained, run.corpus.tokenizer)
    logger.info("%s is %s", work.rung.name, work.origin.describe(work.rung.name))


def _copy_files(origin: Origin, folder: Path, tokenizer: Any) -> None:
    # Checked against what is known of them. Nothing is linked: the source belongs to somebody else, or to the Hub's
    # cache. The record stays behind, so does a choice of attention or experts other than torch's: no rung trains with
    # another, and it may be missing where the model is loaded. The corpus's tokenizer goes along where the model has
    # none of its own.
    stamps = origin.checkpoint.stamps()
    names = [name for name in origin.files() if name != RECORD_NAME]
    if not any(name.startswith("model") and name.endswith(".safetensors") for name in names):
        raise ValueError(f"{origin}: has no safetensors weights; convert it, or take another")
    config = origin.checkpoint.read_config()
    _require_fitting(origin, config)
    digests: dict[str, str | None] = {**origin.checkpoint.digest(names)}
    with storage.atomic_folder(folder, overwrite=True, sha256=digests) as temporary:
        for name in names:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin.folder / name, temporary / name)
        origin.checkpoint.require_unchanged(stamps)
        if foreign := _foreign_choices(origin, config):
            held = storage.read_json(temporary / CONFIG_NAME)
            kept = {key: value for key, value in held.items() if key.removeprefix("_") not in foreign}
            storage.write_json(temporary / CONFIG_NAME, kept)
            del digests[CONFIG_NAME]
        if origin.read_tokenizer() is None:
            tokenizer.save_pretrained(temporary)


def _foreign_choices(origin: Origin, config: Any) -> list[str]:
    chosen = {name: getattr(config, f"_{name}") for name in _CHOICES}
    foreign = [name for name, known in _CHOICES.items() if chosen[name] not in known]
    told = {
        "attn_implementation": "attention by %s runs as torch computes it, in sdpa or eager",
        "experts_implementation": "experts by %s run as torch computes them, in grouped_mm or eager",
    }
    for name in foreign:
        logger.warning(f"%s: {told[name]}", origin, shown(chosen[name]))
    return foreign


def _require_fitting(origin: Origin, config: Any) -> None:
    # What growth would refuse is refused before anything is measured and estimated: weights that are not those of the
    # config, or a head that the config ties and that was trained apart.
    try:
        ParentTensors(plan_growth(config, config), CheckpointReader(origin.folder))
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None


def measure(work: RungWork) -> None:
    """Measure the model on the ladder's validation documents, in the precision in which the other rungs train."""
    state, corpus, training = work.run.state, work.run.corpus, work.training
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(work.trained, dtype=torch.float32)
    with evaluation_precision(training, state.device):
        work.measured = bits_per_byte(
            model.to(state.device),
            corpus.validation,
            token_byte_lengths(corpus.tokenizer),
            # On a CPU, the size of a batch is not chosen by memory.
            batch_size=training.micro_batch_size if state.device.type == "cpu" else None,
            progress=state.is_main_process,
        )


def record(work: RungWork) -> None:
    """Make the rung's final folder, with its record."""
    assert work.origin is not None
    data = _data_read(work.origin, work.run.corpus)
    work.run.finish(work.rung.name, source=work.trained, record=lambda: origin_record(work, data))


def _data_read(origin: Origin, corpus: Corpus) -> DataUse:
    # The span of this corpus if it read that; otherwise what its own record says, or that nothing is known.
    if origin.record is None:
        nothing = dict.fromkeys((*_ORDER, "corpus_blocks"))
        return DataUse.from_dict({**corpus.span(0, 0), **nothing, "source": "unknown"})
    data = origin.record.data
    return DataUse.from_dict(corpus.span(data.first_block, data.blocks)) if _is_same(data, corpus) else data


def first_new_block(origin: Origin, corpus: Corpus) -> int:
    """Return the first block that a model's lineage has not read; 0 where it read another corpus or an unknown one."""
    if origin.record is None or not _is_same(origin.record.data, corpus):
        return 0
    return origin.record.data.first_block + origin.record.data.blocks


def starting_behind(plan: LadderPlan, corpus: Corpus) -> LadderPlan:
    """Return the plan with the corpus read from where its first rung, if it was trained elsewhere, stopped."""
    origin = plan.rungs[0].origin
    return plan if origin is None else plan.starting_at(first_new_block(origin, corpus))


def _is_same(data: DataUse, corpus: Corpus) -> bool:
    own = corpus.span(0, 0)
    return all(getattr(data, key) == own[key] for key in _ORDER)
