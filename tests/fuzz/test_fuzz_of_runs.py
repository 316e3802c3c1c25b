"""Whatever the files of a run hold that travel or are edited: they are read, or refused in one line."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from attacks import Target, as_safetensors, attack
from hub_family import write_run
from mutations import mutated_bytes, mutated_json
from transformers import AutoModelForCausalLM

from hf_progressive import storage
from hf_progressive.config import DataConfig, TokenizerConfig
from hf_progressive.data import prepare_corpus
from hf_progressive.estimation.saved_estimates import FisherRecord, open_estimate, save_estimate
from hf_progressive.evaluation.core.finished_tasks import FinishedTasks
from hf_progressive.growth.new_entries import new_entries
from hf_progressive.growth.optimizer import parameter_groups
from hf_progressive.growth.source import locate_source
from hf_progressive.ladder.rung_penalty import load_penalty
from hf_progressive.penalty.saved_penalty import load_saved_penalty, save_penalty
from hf_progressive.records.origin import locate_origin
from hf_progressive.records.run_progress import PlannedTraining, ProgressRecord, read_progress
from hf_progressive.report.speed_tables import read_prices
from hf_progressive.training.second_moments import read_second_moments

TEXT = "to be or not to be, that is the question. "
PRICE = {"name": "d4", "as_configured": {"flops": 1e9, "hours": 0.1}, "speed": {"mfu": 0.4}}


def targets(folder: Path) -> dict[str, Target]:
    """Write one sound file of every kind."""
    run = write_run(folder / "run")
    child, final = run / "d5" / "init", run / "d5" / "final"
    parent = run / "d4" / "final"
    model = AutoModelForCausalLM.from_pretrained(final)
    squares = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    made = FisherRecord(kind="empirical", definition="token", sequences=1, tokens=8)
    save_estimate(final / "phi" / "fisher.safetensors", squares, made)
    storage.write_manifest(final)
    named = dict(model.named_parameters())
    groups = [{"params": [named[name] for name in names]} for names in parameter_groups(model.config)]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    trained = folder / "checkpoint-1"
    shutil.copytree(final, trained)
    torch.save(optimizer.state_dict(), trained / "optimizer.pt")
    log = [{"step": step, "grad_norm": 1.0 / step, "loss": 2.0} for step in range(1, 5)]
    storage.write_json(trained / "trainer_state.json", {"global_step": 4, "log_history": log})
    save_penalty(load_penalty(final, ewc_lambda=0.5), folder / "phi")
    adapter = folder / "adapter"
    adapter.mkdir()
    storage.write_json(adapter / "adapter_config.json", {"base_model_name_or_path": "org/d4", "peft_type": "LORA"})
    (folder / "a.txt").write_text(TEXT * 200)
    (folder / "b.txt").write_text(TEXT[:12] * 40)
    data = DataConfig(
        source="text",
        files=(str(folder / "a.txt"),),
        tokenizer=TokenizerConfig(name=str(final)),
        validation_files=(str(folder / "b.txt"),),
        max_validation_tokens=64,
    )
    prepare_corpus(data, 16, folder / "data")
    planned = (PlannedTraining(name="d4", flops=1.0, done=False),)
    progress = ProgressRecord(time=1.0, silence=1.0, host="a", pid=1, trainings=planned, activity="train")
    storage.write_json(folder / "progress.json", progress.to_dict())
    storage.write_json(folder / "plan.json", {"cluster": {"mfu": 0.4}, "rungs": [PRICE]})
    finished = FinishedTasks(folder / "core.json")
    finished.record("copa", "0" * 64, {"accuracy": 0.5, "examples": 10})

    def measured() -> object:
        penalty = load_saved_penalty(folder / "phi")
        return penalty.ewc_lambda, [penalty.anchor[name] for name in penalty.anchor]

    def state() -> object:
        found = read_progress(folder)
        return found and (found.state(2.0), found.share)

    moments, fisher = trained / "optimizer.pt", final / "phi" / "fisher.safetensors"
    growth = Target(path=child / "growth.json", read=lambda: new_entries(child), mutate=mutated_json)
    return {
        "growth": growth,
        "growth under a penalty": dataclasses.replace(
            growth, read=lambda: load_penalty(parent, child=child, ewc_lambda=1.0, fisher="ones")
        ),
        "parent's manifest": Target(
            path=parent / "manifest.json",
            read=lambda: load_penalty(parent, child=child, ewc_lambda=1.0, fisher="ones"),
            mutate=mutated_json,
        ),
        "trainer's log": Target(
            path=trained / "trainer_state.json",
            read=lambda: read_second_moments(trained, model).gradient_norms,
            mutate=mutated_json,
        ),
        "moments": Target(path=moments, read=lambda: read_second_moments(moments, model), mutate=mutated_bytes),
        "penalty": Target(path=folder / "phi" / "penalty.json", read=measured, mutate=mutated_json),
        "estimate": Target(
            path=fisher, read=lambda: [*_read(open_estimate(fisher, FisherRecord))], mutate=as_safetensors
        ),
        "adapter": Target(
            path=adapter / "adapter_config.json",
            read=lambda: _refused(lambda: locate_source(adapter).read_config()),
            mutate=mutated_json,
        ),
        "corpus": Target(
            path=folder / "data" / "corpus.json",
            read=lambda: len(prepare_corpus(data, 16, folder / "data").train),
            mutate=mutated_json,
        ),
        "progress": Target(path=folder / "progress.json", read=state, mutate=mutated_json),
        "prices": Target(
            path=folder / "plan.json", read=lambda: read_prices(folder / "plan.json"), mutate=mutated_json
        ),
        "finished tasks": Target(
            path=folder / "core.json",
            read=lambda: FinishedTasks(folder / "core.json").find("copa", "0" * 64),
            mutate=mutated_json,
        ),
        "origin": Target(
            path=final / "rung.json", read=lambda: locate_origin(str(final)).describe(), mutate=mutated_json
        ),
    }


def _read(tensors: Mapping[str, torch.Tensor]) -> Iterator[torch.Tensor]:
    return (tensors[name] for name in tensors)


def _refused(read: Callable[[], object]) -> None:
    # Also the sound file is refused: an adapter is no model.
    with pytest.raises(ValueError, match=r"\A[^\n]*holds a PEFT adapter of [^\n]*\Z|adapter_config.json: "):
        read()


NAMES = [
    *("growth", "growth under a penalty", "parent's manifest", "trainer's log", "moments", "penalty", "estimate"),
    *("adapter", "corpus", "progress", "prices", "finished tasks", "origin"),
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    """One sound file of every kind."""
    return targets(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("name", NAMES)
def test_what_a_run_left_is_read_or_refused_in_one_line(name: str, sound: dict[str, Target]) -> None:
    attack(sound[name], range(10))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_a_run_left_is_read_or_refused_whatever_it_is(name: str, sound: dict[str, Target]) -> None:
    attack(sound[name], range(1000, 1100))
