"""Tasks of no particular kind: when they are ready, what is deleted, and what a failure or a lost file leads to."""

import threading
from pathlib import Path
from typing import Any

import pytest

from hf_progressive import storage
from hf_progressive.storage.temporary_names import temporary_sibling
from hf_progressive.study.runner import TaskFolder, run_tasks
from hf_progressive.study.tasks import Task, connected

# `long` leaves a checkpoint from which `short` goes on; `next` needs what `short` ends with, by way of `grown`.
TASKS = connected(
    [
        Task(name="init", only_if_needed=True),
        Task(name="long", needs=("init/weights",)),
        Task(name="short", needs=("init/weights",), uses=("long/checkpoints/checkpoint-3",)),
        Task(name="grown", needs=("short/final",), only_if_needed=True),
        Task(name="next", needs=("grown/weights",)),
    ]
)


class Hands:
    """Carries tasks out by writing what they make."""

    def __init__(self, root: Path, failing: str = "") -> None:
        self.folder, self.failing = TaskFolder(root, TASKS), failing
        self.done: list[str] = []
        self.went_on: dict[str, bool] = {}

    def __call__(self, task: Task) -> dict[str, Any]:
        assert all(self.folder.is_there(path) for path in task.needs)
        self.went_on[task.name] = any(self.folder.is_there(path) for path in task.uses)
        if task.name == self.failing:
            raise FloatingPointError("the loss is\n nan")
        for path in task.makes:
            with storage.atomic_folder(self.folder.path(path), overwrite=True) as temporary:
                (temporary / "model").write_text(task.name)
        self.done.append(task.name)
        return {"name": task.name}

    def run(self) -> "Hands":
        run_tasks(self.folder, self)
        return self


def ready(folder: TaskFolder) -> list[str]:
    unfinished = folder.unfinished()
    return [task.name for task in unfinished if folder.is_ready(task, {task.name for task in unfinished})]


def test_every_task_is_done_after_what_it_needs_and_nothing_is_left(tmp_path: Path) -> None:
    hands = Hands(tmp_path).run()
    assert hands.done == [task.name for task in TASKS]
    assert hands.went_on["short"]
    assert not any((tmp_path / "weights").iterdir())
    assert Hands(tmp_path).run().done == []


def test_one_that_goes_on_from_a_file_waits_for_that_file_and_not_for_the_task_that_makes_it(tmp_path: Path) -> None:
    hands = Hands(tmp_path)
    storage.write_json(hands.folder.result_path("init"), hands(TASKS[0]))
    assert ready(hands.folder) == ["long"]
    for path in TASKS[1].makes:
        with storage.atomic_folder(hands.folder.path(path)):
            pass
    assert ready(hands.folder) == ["long", "short"]


def test_a_lost_result_brings_back_what_it_needs_and_not_what_it_can_do_without(tmp_path: Path) -> None:
    hands = Hands(tmp_path).run()
    hands.folder.result_path("short").unlink()
    again = Hands(tmp_path).run()
    assert again.done == ["init", "short"]
    assert not again.went_on["short"]
    hands.folder.result_path("next").unlink()
    assert Hands(tmp_path).run().done == ["init", "short", "grown", "next"]
    hands.folder.result_path("grown").unlink()
    assert Hands(tmp_path).run().done == []  # nobody needs it any more


def test_only_what_an_unfinished_task_needs_or_uses_is_kept(tmp_path: Path) -> None:
    hands = Hands(tmp_path)
    for task in TASKS[:2]:
        storage.write_json(hands.folder.result_path(task.name), hands(task))
    hands.folder.path("long/checkpoints/checkpoint-5").mkdir()
    hands.folder.path("long/final").mkdir()
    hands.folder.prune()
    assert hands.folder.is_there("init/weights")
    assert sorted(path.name for path in hands.folder.path("long").iterdir()) == ["checkpoints"]
    storage.write_json(hands.folder.result_path("short"), hands(TASKS[2]))
    hands.folder.prune()
    assert [path.name for path in hands.folder.path(".").iterdir()] == ["short"]


@pytest.mark.parametrize(
    ("failing", "reasons"),
    [
        ("long", {"long": "the loss is nan"}),
        ("short", {"short": "the loss is nan", "grown": "short failed", "next": "grown failed"}),
    ],
)
def test_a_failure_ends_what_needs_it_alone(failing: str, reasons: dict[str, str], tmp_path: Path) -> None:
    hands = Hands(tmp_path, failing).run()
    results = {task.name: hands.folder.result(task.name) or {} for task in TASKS}
    assert {name: result["failed"] for name, result in results.items() if "failed" in result} == reasons
    assert hands.done == [task.name for task in TASKS if task.name not in reasons]
    assert Hands(tmp_path).run().done == []  # a failure is tried again when its result is deleted
    for name in reasons:
        hands.folder.result_path(name).unlink()
    assert set(Hands(tmp_path).run().done) >= reasons.keys()


def test_leftovers_go_only_while_no_other_process_deletes_anything(tmp_path: Path) -> None:
    hands = Hands(tmp_path)
    # `remove_folder` renames before it deletes: what it has renamed looks like a killed process's.
    aside = temporary_sibling(hands.folder.path("long") / "final")
    aside.mkdir(parents=True)
    other = threading.Thread(target=hands.run)
    with hands.folder.settling():
        other.start()
        other.join(0.2)
        assert aside.is_dir()
    other.join(60)
    assert not aside.exists()
    assert len(hands.done) == len(TASKS)


def test_a_result_that_is_damaged_says_what_to_do(tmp_path: Path) -> None:
    hands = Hands(tmp_path).run()
    path = hands.folder.result_path("short")
    path.write_text(path.read_text()[:-3])
    with pytest.raises(ValueError, match=r"short\.json.*; delete the file, and its task is done again"):
        Hands(tmp_path).run()
    path.unlink()
    assert "short" in Hands(tmp_path).run().done
