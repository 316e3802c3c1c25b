"""Processes that share a study's folder, are killed, and come back with another configuration."""

import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ladder_fixtures import RUNGS
from study_fixtures import study_config, study_mapping
from study_pretence import FORK, pretend, pretended_process, run_in_two_processes

from hf_progressive import storage
from hf_progressive.config import StudyConfig
from hf_progressive.study.run import run_study

RECIPES: list[dict[str, Any]] = [
    {"name": "exact"},
    {"name": "Φ", "set": {"phi.ewc_lambda": 0.1}, "parent_recipe": "exact", "rungs": ["l2w24"], "seeds": [0]},
]


def three_rungs(corpus: Path, **changes: Any) -> StudyConfig:
    ladder = {**study_mapping(corpus)["ladder"], "rungs": RUNGS}
    return study_config(corpus, **{"ladder": ladder, "recipes": RECIPES, "seeds": [0, 1], **changes})


def done(log: Path) -> Counter[str]:
    return Counter(line.split()[0] for line in log.read_text().splitlines())


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def test_two_processes_do_every_task_once(corpus_file: Path, tmp_path: Path) -> None:
    config, root, log = three_rungs(corpus_file), tmp_path / "study", tmp_path / "log"
    run_in_two_processes(config, root, log)
    counts = done(log)
    assert set(counts.values()) == {1}
    record = storage.read_json(root / "study.json")
    assert record["complete"]
    # Of each seed: 1 model of the first rung, 2 × 2 baselines, 2 × 3 children; and 3 children with Φ of the first.
    assert record["runs"] == record["finished"] == 2 * (1 + 4 + 6) + 3
    assert len({line.split()[1] for line in log.read_text().splitlines()}) == 2
    assert not any((root / "weights").iterdir())


def test_a_killed_process_leaves_its_task_to_the_next(corpus_file: Path, tmp_path: Path) -> None:
    config, root, log = three_rungs(corpus_file, seeds=[0]), tmp_path / "study", tmp_path / "log"
    for stop_at in (3, 5, 6):
        victim = FORK.Process(target=pretended_process, args=(config, root, log, 0.0, stop_at))
        victim.start()
        wait_for(root / "waiting")
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        (root / "waiting").unlink()
    last = FORK.Process(target=pretended_process, args=(config, root, log, 0.0, None))
    last.start()
    last.join(120)
    assert last.exitcode == 0
    assert set(done(log).values()) == {1}
    assert storage.read_json(root / "study.json")["complete"]


def test_a_folder_is_shared_by_one_configuration_at_a_time(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, root, log = three_rungs(corpus_file, seeds=[0]), tmp_path / "study", tmp_path / "log"
    holder = FORK.Process(target=pretended_process, args=(config, root, log, 0.0, 2))
    holder.start()
    wait_for(root / "waiting")
    try:
        with pytest.raises(ValueError, match="processes with another configuration work in this folder; wait for"):
            run_study(three_rungs(corpus_file), root)
    finally:
        holder.kill()
        holder.join()


def test_what_is_added_later_is_done_and_what_is_there_is_kept(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, log = tmp_path / "study", tmp_path / "log"
    pretend(monkeypatch, log)
    run_study(three_rungs(corpus_file, seeds=[0]), root)
    before = done(log)
    log.unlink()
    pretend(monkeypatch, log)
    more = [*RECIPES, {"name": "later", "set": {"growth.method": "pad"}, "parent_recipe": "exact", "rungs": ["l2w24"]}]
    record = run_study(three_rungs(corpus_file, seeds=[0], recipes=more), root)
    assert record["complete"]
    added = done(log)
    # The new children; and, since the weights that they grow from were deleted, once more the models above them.
    again = {name.rpartition("-")[0] for name in added if name in before}
    assert {name.rpartition("-")[0] for name in added if name not in before} == {
        "l2w24-s0-grown", "l2w24-s0-child-f0.25", "l2w24-s0-child-f0.5", "l2w24-s0-child-f0.8",
    }  # fmt: skip
    assert again == {"l1w16-s0-fresh", "l1w16-s0-cold-f1", "l2w16-s0-grown", "l2w16-s0-child-f0.5"}


def test_a_recipe_that_fails_does_not_end_the_others(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(name: str) -> None:
        if name.startswith("l2w16-s0-child-f0.5"):
            raise FloatingPointError("step 3: the loss is nan")

    pretend(monkeypatch, tmp_path / "log", diverge)
    config = three_rungs(corpus_file, seeds=[0])
    record = run_study(config, tmp_path / "study")
    assert record["failed"][0]["reason"] == "step 3: the loss is nan"
    # Whatever grows from it fails with it; the baselines and the other lengths of the first step are measured.
    assert len(record["failed"]) == 1 + 2 + 6
    assert record["complete"]
    assert [len(row["points"]) for row in record["cold"]] == [1, 2, 2]


def test_a_launch_of_several_processes_is_refused(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="start the command itself several times instead"):
        run_study(three_rungs(corpus_file), tmp_path)
