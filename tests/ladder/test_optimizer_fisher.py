"""A ladder whose Ω is read from the parent's optimizer: what is estimated, where it goes, what it costs."""

from pathlib import Path

import pytest
import torch
from ladder_fixtures import RUNGS, write_ladder
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from trunk_fixtures import write_trunk

from hf_progressive import storage
from hf_progressive.config import load_ladder_config
from hf_progressive.growth import plan_growth
from hf_progressive.ladder.rung_loop import run_ladder
from hf_progressive.ladder.rung_penalty import load_penalty
from hf_progressive.planning.ladder_plan import plan_ladder
from hf_progressive.planning.overhead import estimate_flops
from hf_progressive.planning.preflight import find_problems

PHI = {"ewc_lambda": 0.1, "fisher": {"kind": "optimizer"}}


def second_moments(folder: Path) -> dict[str, torch.Tensor]:
    """Return Adam's second moments by name, by the optimizer that Trainer builds for the model."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    arguments = TrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True)
    optimizer = Trainer(model, arguments).create_optimizer()
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
    return {name: optimizer.state[parameter]["exp_avg_sq"] for name, parameter in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chain", "trunk"])
def test_a_parents_optimizer_gives_the_childs_fisher_for_no_flops(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_progressive.ladder.estimates.estimate_fisher", None)  # nothing is estimated
    settings = {"tokens_per_parameter": 0.2, "batch_tokens": 128, "micro_batch_size": 2, "max_grad_norm": 1e6}
    if kind == "chain":
        path = write_ladder(tmp_path, rungs=RUNGS[:2], cold=[], phi=PHI, training={**settings, "checkpoints": 1})
    else:
        rungs = [{**RUNGS[0], "until": 0.5}, RUNGS[1]]
        path = write_trunk(tmp_path, rungs=rungs, cold=[], phi=PHI, training={**settings, "checkpoints": 1})
    config = load_ladder_config(path)
    run = tmp_path / "run"
    parent, child = run_ladder(config, run)
    first = plan_ladder(config).rungs[0]
    if kind == "chain":
        steps, folder = first.steps, run / "l1w16" / "checkpoints" / f"checkpoint-{first.steps}"
        held = run / "l1w16" / "final"
        assert not (held / "optimizer.pt").exists()
    else:
        assert first.trunk is not None
        steps, folder = first.trunk.steps, run / "l1w16" / "stable"
        held = folder
    fisher = load_file(held / "phi" / "fisher.safetensors")
    for name, value in second_moments(folder).items():  # of GPT-2, Trainer divides the loss by 128, not by 124
        torch.testing.assert_close(fisher[name], 128**2 / 124 * value / (1 - 0.95**steps), rtol=1e-4, atol=0)
    estimate = parent.record["estimates"]["fisher"]
    assert estimate == {
        "flops": 0.0, "sequences": 0, "kind": "optimizer", "definition": "sequence", "tokens": 0, "normalize": None,
        "batch_tokens": 4 * 31, "max_grad_norm": 1e6,
    }  # fmt: skip
    assert child.record["flops"]["fisher"] == 0.0
    assert child.record["phi"]["fisher"]["kind"] == "optimizer"
    growth = plan_growth(first.config, plan_ladder(config).rungs[1].config)
    kept = load_penalty(next((run / "l2w16" / "checkpoints").glob("checkpoint-*"))).fisher
    assert kept is not None
    for name, value in growth.map_diagonal(fisher).items():
        torch.testing.assert_close(kept[name], value)
    storage.check_manifest(parent.folder)


def test_it_is_planned_as_free_and_refused_where_there_is_none(tmp_path: Path) -> None:
    config = load_ladder_config(write_ladder(tmp_path, phi=PHI))
    assert find_problems(config) == []
    assert estimate_flops(config.phi, plan_ladder(config).rungs[0], 32)["fisher"] == 0.0
    for change, words in (
        ("training.optimizer=muon", "Muon keeps none of the matrices"),
        ("training.arguments.optim=adafactor", "reads torch's AdamW, not training.arguments.optim adafactor"),
        ("training.arguments.deepspeed=x.json", "does not work with DeepSpeed"),
    ):
        changed = load_ladder_config(tmp_path / "ladder.yaml", [change])
        assert any(words in problem for problem in find_problems(changed))
    for change in ("phi.fisher.optimizer=optimizer.pt", "phi.fisher.batch_tokens=128"):
        with pytest.raises(ValueError, match="give both"):
            load_ladder_config(tmp_path / "ladder.yaml", [change])
