"""Which run of Weights & Biases a training is told in."""

import sys
from types import SimpleNamespace

import pytest

from hf_progressive.training.trackers import tracked_apart


@pytest.fixture
def opened(monkeypatch):
    """What was opened in a stand-in for W&B."""
    calls, wandb = [], SimpleNamespace(run=None)

    def init(**given):
        calls.append(given)
        wandb.run = SimpleNamespace(finish=lambda exit_code: setattr(wandb, "run", None))

    wandb.init = init
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for name in ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return calls


def train(folder, report_to=("wandb",), process_index=0):
    args = SimpleNamespace(
        output_dir=str(folder), run_name=folder.name, report_to=[*report_to], process_index=process_index
    )
    with tracked_apart(args):
        yield


def test_a_training_that_goes_on_does_so_in_its_run_and_others_have_their_own(tmp_path, opened, monkeypatch):
    for name in ("small", "large", "large"):
        for _ in train(tmp_path / name):
            assert sys.modules["wandb"].run is not None
        assert sys.modules["wandb"].run is None
    small, large, again = opened
    assert large == again
    assert large["id"] != small["id"]
    assert (large["name"], large["resume"], large["project"]) == ("large", "allow", "huggingface")
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    assert [*train(tmp_path / "large")] == [None]
    assert opened[-1]["id"] == "mine"


@pytest.mark.parametrize("told", [{"report_to": ["trackio"]}, {"process_index": 1}])
def test_nothing_is_opened_for_others(tmp_path, opened, told):
    assert [*train(tmp_path, **told)] == [None]
    assert opened == []


def test_a_run_that_was_open_stays_so(tmp_path, opened):
    own = sys.modules["wandb"].run = object()
    assert [*train(tmp_path)] == [None]
    assert sys.modules["wandb"].run is own
    assert opened == []
