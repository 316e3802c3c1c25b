"""What is interrupted: each command at its smallest, on what it is given, and what it must leave in the end."""

import argparse
import contextlib
import gc
import hashlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from durable_calls import Met, StatesKept, watch
from ladder_fixtures import RUNGS, ladder_mapping, write_corpus, write_ladder
from study_fixtures import study_mapping
from trunk_fixtures import write_trunk

from hf_progressive import cli, storage
from hf_progressive.records.run_progress import PROGRESS_NAME

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        "pytest",
        "hypothesis",
        "hf_progressive.cli.commands",
        "hf_progressive.growth.grow",
        "hf_progressive.ladder.rung_loop",
        "hf_progressive.study.run",
        "hf_progressive.publishing",
        "transformers.trainer",
        "transformers.models.gpt2.modeling_gpt2",
        "transformers.models.auto.modeling_auto",
    ]
)
"""Processes forked from one that has imported everything and computed nothing."""

READ_BY_OTHERS = {"init", "final", "stable", "parent", "grown", "data"}
"""Names of folders that are whole whenever they are there."""

GPT2 = {"n_layer": 1, "n_embd": 16, "n_head": 2}
SECONDS = {"seconds", "evaluation_seconds", "throughput", "tokens_per_second", "mfu", "total_flos"}
SECONDS |= {
    f"{part}_{figure}"
    for part in ("eval", "train")
    for figure in ("runtime", "samples_per_second", "steps_per_second")
}
"""Keys of records that tell how long something took."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A command and its smallest input."""

    give: Callable[[Path], object]
    """Write what it reads into a folder."""

    do: Callable[[Path, Path], tuple[int, dict[str, Any]]]
    """Carry it out: from the folder given, into another; in a process of its own."""

    every: int = 1
    """Of how many states one is resumed from, unless all are."""

    by_kind: bool = True
    """Whether states that differ only in what the next start removes count as one."""


def _checkpoint(folder: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from hf_progressive.data import train_tokenizer

    torch.manual_seed(0)
    config = GPT2Config(**GPT2, n_positions=32, vocab_size=260, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    text = ["1 and 2 make 3.", "4 and 15 make 19."]
    train_tokenizer(text, vocab_size=260, training_bytes=1000).save_pretrained(folder)


def _give_checkpoint(given: Path) -> None:
    _checkpoint(given / "source")


def _grow(given: Path, run: Path) -> tuple[int, dict[str, Any]]:
    from hf_progressive import grow_checkpoint

    grown = {"n_layer": 2, "n_embd": 24, "n_head": 3}
    report = grow_checkpoint(given / "source", run / "grown", grown, seed=1, max_shard_size="40KB", overwrite=True)
    return 0, report.to_dict()


def _prepare(given: Path, run: Path) -> tuple[int, dict[str, Any]]:
    from hf_progressive.config import load_ladder_config
    from hf_progressive.data import encoding, parts, prepare
    from hf_progressive.ladder.preparation import prepare_ladder

    parts.PART_TOKENS, prepare.BATCH_DOCUMENTS, encoding.BATCH_DOCUMENTS = 3000, 20, 20
    return 0, prepare_ladder(load_ladder_config(given / "ladder.yaml"), run).to_dict()


def _give_corpus(given: Path) -> None:
    write_ladder(given, rungs=RUNGS[:1], cold="none")


def _give_chain(given: Path) -> None:
    _checkpoint(given / "source")
    rungs = [{"name": "d1", "source": str(given / "source")}, RUNGS[2]]
    mapping = ladder_mapping(write_corpus(given, documents=40), rungs=rungs)
    del mapping["data"]["tokenizer"]  # the first rung's is taken over
    mapping["data"]["max_validation_tokens"] = 128
    mapping["training"] |= {"tokens_per_parameter": 0.03, "micro_batch_size": 4, "evaluations": 1, "checkpoints": 2}
    mapping["phi"]["fisher"]["sequences"] = 2
    (given / "ladder.yaml").write_text(yaml.safe_dump(mapping))


def _give_trunk(given: Path) -> None:
    training = {"tokens_per_parameter": 0.08, "batch_tokens": 128, "micro_batch_size": 4, "learning_rate": 3e-3}
    training |= {"decay_fraction": 0.4, "evaluations": 1, "checkpoints": 3}
    trunk = {"member": "average", "average_over": 1.0, "average_of": 2, "moments": "grown"}
    rungs = [{**RUNGS[0], "until": 0.5}, RUNGS[1]]
    write_trunk(given, trunk=trunk, rungs=rungs, cold="none", training=training)
    mapping = yaml.safe_load((given / "ladder.yaml").read_text())
    mapping["data"]["max_validation_tokens"] = 128
    (given / "ladder.yaml").write_text(yaml.safe_dump(mapping))


def _ladder(given: Path, run: Path) -> tuple[int, dict[str, Any]]:
    from hf_progressive.config import load_ladder_config
    from hf_progressive.ladder.rung_loop import run_ladder

    run_ladder(load_ladder_config(given / "ladder.yaml"), run)
    return 0, {}


def _give_study(given: Path) -> None:
    recipes = [{"name": "held", "set": {"growth.parent": "stable", "phi.gamma": 1e-3}, "carry_moments": True}]
    changes = {"recipes": recipes, "cold_fractions": [1.0], "child_fractions": [0.5, 1.0]}
    mapping = study_mapping(write_corpus(given, documents=40), **changes)
    mapping["ladder"]["training"] |= {"tokens_per_parameter": 0.05, "micro_batch_size": 4}
    mapping["ladder"]["data"]["max_validation_tokens"] = 128
    mapping["ladder"]["phi"]["fisher"]["sequences"] = 2
    (given / "study.yaml").write_text(yaml.safe_dump(mapping))


def _study(given: Path, run: Path) -> tuple[int, dict[str, Any]]:
    from hf_progressive.config import load_study_config
    from hf_progressive.study.run import run_study

    return 0, run_study(load_study_config(given / "study.yaml"), run)


WORKS = {
    "grow": Work(give=_give_checkpoint, do=_grow, every=2, by_kind=False),
    "prepare": Work(give=_give_corpus, do=_prepare, every=4, by_kind=False),
    "chain": Work(give=_give_chain, do=_ladder, every=6),
    "trunk": Work(give=_give_trunk, do=_ladder, every=6),
    "study": Work(give=_give_study, do=_study, every=14),
}


def _carry_out(name: str, given: Path, run: Path, told: Path, met: Met | None) -> None:
    import datasets

    gc.freeze()  # what was imported is not looked through again
    datasets.config.HF_DATASETS_CACHE = given / "cache"
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        with told.open("ab") as file:
            os.dup2(file.fileno(), stream.fileno())
    if met is not None:
        watch(run, met)
    code = cli.execute(lambda _: WORKS[name].do(given, run), argparse.Namespace(json=False))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if isinstance(met, StatesKept):
        met.write_counts()
    os._exit(code)


def carry_out(name: str, folder: Path, met: Met | None = None) -> tuple[int, list[str]]:
    """Do a work in a process of its own, from `folder/given` into `folder/run`.

    Returns:
        The process's exit code, negative for a signal's, and the lines that it wrote.
    """
    told = folder / "told.txt"
    told.write_text("")
    process = FORKED.Process(target=_carry_out, args=(name, folder / "given", folder / "run", told, met))
    process.start()
    process.join(120)
    assert process.exitcode is not None, told.read_text()
    return process.exitcode, told.read_text().splitlines()


def left_in(run: Path) -> dict[str, object]:
    """Everything in a folder: names, and contents but for times and what follows from them."""
    return dict(_left(run))


def _left(run: Path) -> Iterator[tuple[str, object]]:
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_dir():
            yield name, "a folder"
        elif path.name == PROGRESS_NAME:
            yield name, "what is done when"
        elif path.suffix == ".json":
            yield name, _without_times(storage.read_json(path))
        elif path.suffix == ".lock":
            yield name, "a lock"
        elif path.suffix in (".pt", ".pth", ".bin"):
            yield name, len(path.read_bytes()) if path.suffix == ".bin" and "training_args" in name else _digest(path)
        else:
            yield name, _digest(path)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _without_times(entry) for key, entry in value.items() if key not in SECONDS}
        with contextlib.suppress(KeyError, TypeError):  # a manifest's digests of files with times
            for file in [file for file in kept["files"] if file.endswith((".json", "training_args.bin"))]:
                del kept["files"][file]
        return kept
    return [_without_times(entry) for entry in value] if isinstance(value, list) else value


def assert_nothing_is_half(run: Path) -> None:
    """Whatever stands under a name that others read is whole."""
    for folder in (path for path in run.rglob("*") if path.is_dir()):
        passing = any(part.endswith((".tmp", ".saving", ".unfinished")) for part in folder.relative_to(run).parts)
        if not passing and (folder.name in READ_BY_OTHERS or folder.name.startswith("checkpoint-")):
            assert storage.is_complete(folder), folder
