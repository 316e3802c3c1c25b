"""What a trainer logged, as a record has it: the same bytes, whether or not the run was resumed in between."""

import json

from transformers import TrainerState

from hf_progressive.training.history import training_log


def test_a_log_that_went_through_a_checkpoint_is_the_same_text(tmp_path):
    logged = [
        {"loss": 1.5, "grad_norm": 0.5, "learning_rate": 1e-3, "epoch": step / 4, "step": step} for step in (1, 2)
    ]
    TrainerState(log_history=logged).save_to_json(str(tmp_path / "state.json"))
    resumed = TrainerState.load_from_json(str(tmp_path / "state.json")).log_history
    assert json.dumps(resumed) != json.dumps(logged)  # Trainer sorts the keys
    assert json.dumps(training_log(resumed)) == json.dumps(training_log(logged))
