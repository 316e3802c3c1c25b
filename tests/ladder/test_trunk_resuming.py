"""A trunk that was interrupted or killed, wherever that was, ends with the same bits, in one process and in two."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interrupted_runs import ON_CPUS, final_files, ladder_command, run_killed_again_and_again
from ladder_fixtures import NAMES
from transformers import TrainerCallback
from trunk_fixtures import write_trunk

from hf_progressive.config import load_ladder_config
from hf_progressive.growth import grow
from hf_progressive.ladder import steps
from hf_progressive.ladder.rung_loop import run_ladder
from hf_progressive.training import averaging, training_run
from hf_progressive.training.checkpoints import newest_complete_checkpoint

ON_BRANCHES = {"moments": "grown", "rewarm": "new", "rewarm_fraction": 0.1}
BY_AVERAGE = {"member": "average", "average_over": 0.5, "average_of": 3, "moments": "grown"}


class _Interruption(TrainerCallback):
    """Break off before a step of a rung's run, as a failing machine would."""

    def __init__(self, rung: str, step: int) -> None:
        self.rung, self.step = rung, step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (args.run_name, state.global_step) == (self.rung, self.step):
            raise KeyboardInterrupt


def before_step(rung: str, step: int) -> Callable[[pytest.MonkeyPatch], None]:
    def patch(patches: pytest.MonkeyPatch) -> None:
        build = training_run.ProgressiveTrainer.__init__

        def interrupted(self: Any, *args: Any, **kwargs: Any) -> None:
            build(self, *args, **kwargs)
            self.add_callback(_Interruption(rung, step))

        patches.setattr(training_run.ProgressiveTrainer, "__init__", interrupted)

    return patch


def at_call(place: Any, name: str, number: int = 1) -> Callable[[pytest.MonkeyPatch], None]:
    """Break off where a function is called for the n-th time."""

    def patch(patches: pytest.MonkeyPatch) -> None:
        calls, do = iter(range(1, 1000)), getattr(place, name)

        def interrupted(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == number:
                raise KeyboardInterrupt
            return do(*args, **kwargs)

        patches.setattr(place, name, interrupted)

    return patch


INTERRUPTIONS = {
    "branches": (
        ON_BRANCHES,
        [
            before_step(NAMES[0], 5),  # on the trunk
            before_step(NAMES[0], 10),  # in the member's decay
            at_call(grow, "compare_logits"),  # in the growth, weights and moments written
            before_step(NAMES[1], 3),  # in the re-warm
            at_call(steps, "rung_record"),  # trained and not recorded
            before_step(NAMES[2], 11),  # in the last decay
        ],
    ),
    "averages": (
        BY_AVERAGE,
        [
            before_step(NAMES[0], 8),  # between two weights of the average
            at_call(averaging, "_mean", number=5),  # in the averaging
            at_call(steps, "measure_like_run"),  # averaged and not measured
            before_step(NAMES[1], 4),
        ],
    ),
    "Muon": (
        ON_BRANCHES,
        [
            before_step(NAMES[0], 10),  # in the member's decay
            before_step(NAMES[1], 3),  # in the re-warm, with a grown momentum
        ],
    ),
}


@pytest.mark.parametrize("kind", ["branches", "averages", pytest.param("Muon", marks=pytest.mark.slow)])
def test_an_interrupted_trunk_ends_with_the_same_bits(tmp_path: Path, kind: str) -> None:
    settings, interruptions = INTERRUPTIONS[kind]
    written = write_trunk(tmp_path, trunk=settings, cold="none")
    config = load_ladder_config(written, ["training.optimizer=muon"] if kind == "Muon" else [])
    run_ladder(config, tmp_path / "whole")
    for interrupt in interruptions:
        with pytest.MonkeyPatch.context() as patches:
            interrupt(patches)
            with pytest.raises(KeyboardInterrupt):
                run_ladder(config, tmp_path / "interrupted")
    assert newest_complete_checkpoint(tmp_path / "interrupted" / NAMES[0] / "checkpoints") is not None
    run_ladder(config, tmp_path / "interrupted")
    assert final_files(tmp_path / "interrupted") == final_files(tmp_path / "whole")
    assert not list((tmp_path / "interrupted").glob("*/averaged"))


@pytest.fixture(params=["branches", "averages"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_trunk(tmp_path, trunk=INTERRUPTIONS[request.param][0])


@pytest.mark.slow
def test_a_killed_trunk_of_two_processes_ends_with_the_same_bits(written: Path, tmp_path: Path) -> None:
    """One process is killed at each of its calls in tests/durability/test_kills.py."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(ladder_command(written, whole, processes=2), check=True, capture_output=True, env=ON_CPUS)
    kills = run_killed_again_and_again(ladder_command(written, killed, processes=2), killed, kills=3)
    assert kills >= 2, "the run was over before it could be killed often enough to mean anything"
    assert final_files(killed) == final_files(whole)
