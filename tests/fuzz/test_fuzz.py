"""Whatever a file from outside holds: it is read, or refused in one line, within a second, and nothing is left.

Every mutation is drawn from its number, so that a failure names what to draw again.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacks import Target, as_safetensors, as_yaml, attack, in_lines
from hub_family import write_run
from mutations import mutated_bytes, mutated_json
from transformers import GPT2Config, GPT2LMHeadModel

from hf_progressive import storage
from hf_progressive.config import DataConfig, load_ladder_config, load_study_config
from hf_progressive.data.documents import DocumentStream, read_documents
from hf_progressive.data.tokenizer import read_tokenizer, train_tokenizer
from hf_progressive.growth import plan_growth
from hf_progressive.growth.reader import CheckpointReader
from hf_progressive.growth.source import locate_source
from hf_progressive.planning.preflight import find_problems
from hf_progressive.records.ladder import read_run
from hf_progressive.records.rung import RungRecord
from hf_progressive.records.study import StudyRecord

ROOT = Path(__file__).parents[2]


def targets(folder: Path) -> dict[str, Target]:
    """Write one sound file of every kind; a target's name says what it is."""
    checkpoint, corpus, run = folder / "checkpoint", folder / "corpus", write_run(folder / "run")
    sizes = {"vocab_size": 30, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))
    model.save_pretrained(checkpoint)
    model.save_pretrained(folder / "sharded", max_shard_size="1KB")
    train_tokenizer(["to be or not to be"], vocab_size=260, training_bytes=1000).save_pretrained(folder / "tokenizer")
    corpus.mkdir()
    lines = "\n".join(json.dumps({"text": f"report {i}: rain [in] the {{north}}. "}) for i in range(20)).encode()
    contents = {"a.jsonl": lines, "a.jsonl.gz": gzip.compress(lines), "a.txt": "naïve\nwords\n".encode() * 20}
    for name, content in contents.items():
        (corpus / name).write_bytes(content)
    study = storage.read_json(ROOT / "examples/studies/trunk/study.json")
    storage.write_json(folder / "study.json", study)
    for name in ("ladder_tiny", "study_books"):
        (folder / f"{name}.yaml").write_bytes((ROOT / f"configs/{name}.yaml").read_bytes())

    def grown() -> object:
        return plan_growth(locate_source(str(checkpoint)).read_config(), {"n_layer": 2, "n_embd": 16, "n_head": 4})

    def tensors(where: Path) -> None:
        reader = CheckpointReader(where)
        for name in reader.specs:
            reader.read(name)

    def documents(name: str, source: str, *, streaming: bool) -> object:
        config = DataConfig(source=source, files=(str(corpus / name),), streaming=streaming, shuffle_seed=None)
        return list(DocumentStream(config)) if streaming else read_documents(config)["text"]

    final = run / "d5" / "final"
    return {
        "config": Target(path=checkpoint / "config.json", read=grown, mutate=mutated_json),
        "weights": Target(
            path=checkpoint / "model.safetensors", read=lambda: tensors(checkpoint), mutate=as_safetensors
        ),
        "index": Target(
            path=folder / "sharded/model.safetensors.index.json",
            read=lambda: tensors(folder / "sharded"),
            mutate=mutated_json,
        ),
        "ladder": Target(
            path=folder / "ladder_tiny.yaml",
            read=lambda: find_problems(load_ladder_config(folder / "ladder_tiny.yaml")),
            mutate=as_yaml,
        ),
        "study": Target(
            path=folder / "study_books.yaml",
            read=lambda: load_study_config(folder / "study_books.yaml"),
            mutate=as_yaml,
        ),
        "rung record": Target(path=final / "rung.json", read=lambda: _rung(final / "rung.json"), mutate=mutated_json),
        "study record": Target(
            path=folder / "study.json", read=lambda: StudyRecord.read(folder / "study.json"), mutate=mutated_json
        ),
        "ladder record": Target(path=run / "ladder.json", read=lambda: _run(run), mutate=mutated_json),
        "manifest": Target(
            path=final / "manifest.json", read=lambda: storage.check_manifest(final), mutate=mutated_json
        ),
        "tokenizer": Target(
            path=folder / "tokenizer/tokenizer.json",
            read=lambda: read_tokenizer(folder / "tokenizer"),
            mutate=mutated_json,
        ),
        "tokenizer settings": Target(
            path=folder / "tokenizer/tokenizer_config.json",
            read=lambda: read_tokenizer(folder / "tokenizer"),
            mutate=mutated_json,
        ),
        "lines": Target(
            path=corpus / "a.jsonl", read=lambda: documents("a.jsonl", "json", streaming=True), mutate=in_lines
        ),
        "zipped lines": Target(
            path=corpus / "a.jsonl.gz",
            read=lambda: documents("a.jsonl.gz", "json", streaming=True),
            mutate=mutated_bytes,
        ),
        "text": Target(
            path=corpus / "a.txt", read=lambda: documents("a.txt", "text", streaming=True), mutate=mutated_bytes
        ),
    }


def _rung(path: Path) -> object:
    rung = RungRecord.read(path)
    return rung.to_dict(), rung.cold_cost, rung.lineage, rung.layers, rung.width, rung.without_times()


def _run(run: Path) -> object:
    found = read_run(run)
    return found.totals, found.missing, found.pending_baselines


NAMES = [
    *("config", "weights", "index", "ladder", "study", "rung record", "study record", "ladder record", "manifest"),
    *("tokenizer", "tokenizer settings", "lines", "zipped lines", "text"),
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    """One sound file of every kind."""
    return targets(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture
def target(request: pytest.FixtureRequest, sound: dict[str, Target]) -> Iterator[Target]:
    """A target, whose file is sound again afterwards."""
    found = sound[request.param]
    content = found.path.read_bytes()
    yield found
    found.path.write_bytes(content)


@pytest.mark.parametrize("target", NAMES, indirect=True)
def test_what_comes_from_outside_is_read_or_refused_in_one_line(target: Target) -> None:
    attack(target, range(15))


@pytest.mark.slow
@pytest.mark.parametrize("target", NAMES, indirect=True)
def test_what_comes_from_outside_is_read_or_refused_whatever_it_is(target: Target) -> None:
    attack(target, range(1000, 1300))
