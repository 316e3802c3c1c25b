"""Ladders whose rungs change the family: a mixture of experts made of a dense rung, priced and run."""

from pathlib import Path

import pytest
import torch
from ladder_fixtures import ladder_mapping, write_ladder
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from hf_progressive.config import load_ladder_config
from hf_progressive.ladder.rung_loop import run_ladder
from hf_progressive.planning.ladder_plan import plan_ladder
from hf_progressive.planning.sizing import count_parameters
from hf_progressive.training import training_run
from hf_progressive.training.flops import flops_per_token

DENSE = {"name": "dense", "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
EXPERTS = {"name": "experts", "family": "mixtral", "num_local_experts": 4, "num_hidden_layers": 2,
           "growth": {"method": "upcycle"}}  # fmt: skip
MORE = {"name": "more", "num_local_experts": 8, "num_experts_per_tok": 4}
NO_PHI = {"ewc_lambda": 0.0, "gamma": 0.0}


def upcycled(folder: Path, *rungs: dict, **changes: object) -> Path:
    return write_ladder(folder, model={"context": 32, "family": "llama"}, rungs=list(rungs), **changes)


def test_flops_and_parameters_count_what_a_token_meets() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
             "num_key_value_heads": 4, "vocab_size": 300, "max_position_embeddings": 32}  # fmt: skip
    dense = LlamaConfig(**sizes)
    mixture = MixtralConfig(**sizes, num_local_experts=8, num_experts_per_tok=2)
    expert, router = 3 * 64 * 96, 8 * 64
    assert flops_per_token(mixture) == flops_per_token(dense) + 6 * 3 * (expert + router)
    before, after = count_parameters(dense), count_parameters(mixture)
    assert after.total == before.total + 3 * (7 * expert + router)
    assert after.active == before.total + 3 * (expert + router) == after.total - 3 * 6 * expert
    assert after.scaling == before.scaling + 3 * (expert + router)
    assert after.describe() == f"{after.total:,} ({after.active:,} active)"
    assert before.active == before.total


def test_the_plan_prices_active_parameters_and_keeps_the_parents_fields(tmp_path: Path) -> None:
    plan = plan_ladder(load_ladder_config(upcycled(tmp_path, DENSE, EXPERTS, MORE, cold=[])))
    dense, experts, more = plan.rungs
    assert [rung.config.model_type for rung in plan.rungs] == ["llama", "mixtral", "mixtral"]
    assert experts.config.rms_norm_eps == dense.config.rms_norm_eps
    assert experts.config.rope_parameters == dense.config.rope_parameters
    assert experts.config.num_experts_per_tok == 2
    assert all(rung.growth is None or rung.growth.preserves_function for rung in plan.rungs)
    assert f"({more.parameters.active:,} active)" in plan.table()
    assert plan.to_dict()["rungs"][2]["parameters"]["active"] == more.parameters.active < more.parameters.total


@pytest.mark.parametrize(
    ("rung", "message"),
    [
        ({**EXPERTS, "growth": {}}, "family mixtral after llama needs growth.method upcycle, .* here it is 'exact'"),
        ({**EXPERTS, "family": "qwen3_moe"}, "a llama is upcycled into a mixtral, not into a qwen3_moe"),
        ({**EXPERTS, "num_local_experts": None}, "say how many experts"),
        ({**EXPERTS, "hidden_size": 8}, "growth never shrinks: width 16 → 8"),
    ],
)
def test_a_change_of_family_that_is_none_is_refused(tmp_path: Path, rung: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_ladder(load_ladder_config(upcycled(tmp_path, DENSE, rung, cold=[])))


def test_another_family_needs_fields(tmp_path: Path) -> None:
    rung = {"name": "deeper", "depth": 3, "family": "mixtral", "growth": {"method": "upcycle"}}
    with pytest.raises(ValueError, match="deeper: a rung of another family needs explicit fields"):
        load_ladder_config(upcycled(tmp_path, DENSE, rung, cold=[]))


@pytest.mark.slow
def test_a_ladder_runs_from_dense_to_experts_to_more_with_the_penalty(tmp_path: Path) -> None:
    path = upcycled(tmp_path, DENSE, EXPERTS, {**MORE, "hidden_size": 24, "num_attention_heads": 3}, cold=["more"])
    results = run_ladder(load_ladder_config(path), tmp_path / "run")
    for result in results[1:]:
        assert result.record["max_abs_logit_diff"] <= 1e-5 * result.record["max_abs_logit"]
        model, loading = AutoModelForCausalLM.from_pretrained(result.folder, output_loading_info=True)
        assert type(model).__name__ == "MixtralForCausalLM"
        assert not loading["missing_keys"]
    names = load_file(results[1].folder / "model.safetensors")
    assert "model.layers.0.block_sparse_moe.experts.3.w2.weight" in names


@pytest.mark.slow
def test_a_new_layer_of_experts_trained_alone_goes_on_after_an_interruption_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"training": {**ladder_mapping(tmp_path)["training"], "trainable": "new_layers"}, "phi": NO_PHI}
    config = load_ladder_config(upcycled(tmp_path, DENSE, EXPERTS, cold=[], **changes))
    whole = run_ladder(config, tmp_path / "whole")
    step = training_run.ProgressiveTrainer.training_step
    taken: list[int] = []

    def interrupted(self: object, *args: object, **kwargs: object) -> object:
        if type(self.model).__name__ == "MixtralForCausalLM":
            taken.append(self.state.global_step)
            if self.state.global_step == 8:
                raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(training_run.ProgressiveTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_ladder(config, tmp_path / "run")
    monkeypatch.undo()
    assert taken[-1] == 8
    assert any((tmp_path / "run" / "experts").rglob("checkpoint-*"))
    run_ladder(config, tmp_path / "run")
    init, once, twice = (
        load_file(tmp_path / run / "experts" / stage / "model.safetensors")
        for run, stage in (("whole", "init"), ("whole", "final"), ("run", "final"))
    )
    assert whole[1].record["max_abs_logit_diff"] <= 1e-5 * whole[1].record["max_abs_logit"]
    moved = {name for name, tensor in once.items() if not torch.equal(tensor, init[name])}
    router = "block_sparse_moe.gate.weight"  # which a dense layer has none of, so that it is new everywhere
    assert f"model.layers.0.{router}" in moved
    assert all(name.startswith("model.layers.1.") or name.endswith(router) for name in moved)
    assert all(torch.equal(tensor, twice[name]) for name, tensor in once.items())
