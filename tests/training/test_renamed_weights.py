"""Models whose files hold weights under other names: a run that goes on from a checkpoint has that one's weights."""

import pytest
import torch
from trainer_fixtures import VOCABULARY, Blocks, arguments, assert_same_weights, weights
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from hf_progressive.training.trainer import ProgressiveTrainer

FIELDS = {
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1},  # experts one by one
    "gpt_neox": {"tie_word_embeddings": False, "hidden_dropout": 0.0, "attention_dropout": 0.0},  # the output head
}


def trainer_of(model_type, folder, *, seed, **changes):
    set_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    config = AutoConfig.for_model(model_type, max_position_embeddings=16, **sizes, **tokens, **FIELDS[model_type])
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2} | changes
    model = AutoModelForCausalLM.from_config(config)
    return ProgressiveTrainer(
        model, arguments(folder, **settings), train_dataset=Blocks(), eval_dataset=Blocks(count=8)
    )


@pytest.mark.parametrize("model_type", FIELDS)
def test_a_resumed_run_ends_with_the_same_bits(model_type, tmp_path):
    whole = trainer_of(model_type, tmp_path, seed=0)
    whole.train()
    again = trainer_of(model_type, tmp_path, seed=1)  # what it holds before does not matter
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same_weights(weights(again.model), weights(whole.model))


def test_the_best_model_is_the_one_that_was_saved(tmp_path):
    best = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    first = {"metric_for_best_model": "loss", "greater_is_better": True}  # so that it is not the last
    trainer = trainer_of("mixtral", tmp_path, seed=0, **best, **first)
    trainer.train()
    chosen = trainer.state.best_model_checkpoint
    assert chosen.endswith("checkpoint-2")
    stored = AutoModelForCausalLM.from_pretrained(chosen).state_dict()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in trainer.model.state_dict().items())
