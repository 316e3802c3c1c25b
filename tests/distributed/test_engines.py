"""One trajectory, whatever the engine: two processes under `accelerate launch` against one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import engine_run
import measured_run
import new_layer_run
import pytest
import torch
from safetensors.torch import load_file

CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"
SCRIPT = Path(engine_run.__file__)

ENGINES = {
    # config → the engine that must have run, whether it divides the anchor
    "ddp": ("DistributedType.MULTI_CPU", False),
    "deepspeed_zero1": ("DistributedType.DEEPSPEED", True),
    "deepspeed_zero2": ("DistributedType.DEEPSPEED", True),
    "deepspeed_zero3": ("DistributedType.DEEPSPEED", True),
    "fsdp2": ("DistributedType.FSDP", True),
}
COMPARED = ("loss", "grad_norm", "phi/ewc", "phi/subspace", "phi/grad_ratio", "phi/lambda")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process, 8 sequences a step in one micro-batch."""
    folder = tmp_path_factory.mktemp("alone")
    engine_run.train(folder, batch=8, accumulation=1)
    return read(folder)


def read(folder):
    result = json.loads((folder / "result-0.json").read_text())
    return result, load_file(folder / "weights.safetensors")


def launch(engine, folder, *options, script=SCRIPT):
    """Two CPU processes with the engine's own configuration; only what a CPU cannot do is overridden."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{engine}.yaml"),
        "--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0",
        str(script), str(folder), *options,
    ]  # fmt: skip
    if engine == "fsdp2":
        command.append("--fsdp")
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize(
    "engine", [pytest.param(name, marks=[] if name == "ddp" else [pytest.mark.slow]) for name in ENGINES]
)
def test_two_processes_train_as_one(engine, alone, tmp_path):
    """8 × 1 on one process, 4 × 1 and 2 × 2 on two: loss, gradient norm, Φ and weights to float32 rounding."""
    if engine.startswith("deepspeed"):
        pytest.importorskip("deepspeed")
    launch(engine, tmp_path)
    expected, expected_weights = alone
    kind, divides = ENGINES[engine]
    for case in ("plain", "accumulated"):
        result, weights = read(tmp_path / case)
        assert (result["engine"], result["processes"]) == (kind, 2)
        for key in COMPARED:
            assert result[key] == pytest.approx(expected[key], rel=2e-6, abs=1e-7), (case, key)
        torch.testing.assert_close(weights, expected_weights, rtol=0, atol=2e-6)
        ranks = [json.loads((tmp_path / case / f"result-{rank}.json").read_text()) for rank in (0, 1)]
        assert_memory(ranks, expected, divides=divides)
    _, weights = read(tmp_path / "plain")
    _, resumed = read(tmp_path / "resumed")
    torch.testing.assert_close(resumed, weights, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_take_the_proximal_step_as_one(engine, tmp_path):
    """Two groups of parameters, one without weight decay: ZeRO steps its master weights group by group."""
    if engine.startswith("deepspeed"):
        pytest.importorskip("deepspeed")
    engine_run.train(tmp_path / "alone", batch=8, accumulation=1, **engine_run.PROXIMAL)
    launch(engine, tmp_path, "--proximal")
    expected, expected_weights = read(tmp_path / "alone")
    assert expected["phi/moved_ratio"][0] > 0.2
    result, weights = read(tmp_path / "plain")
    assert (result["engine"], result["processes"]) == (ENGINES[engine][0], 2)
    for key in ("loss", "grad_norm", "phi/ewc", "phi/subspace", "phi/moved_ratio", "phi/lambda"):
        assert result[key] == pytest.approx(expected[key], rel=5e-6, abs=1e-7), key
    torch.testing.assert_close(weights, expected_weights, rtol=0, atol=2e-6)
    _, resumed = read(tmp_path / "resumed")
    torch.testing.assert_close(resumed, weights, rtol=0, atol=0)


@pytest.fixture(scope="module")
def alone_by_form(tmp_path_factory):
    """One process, LoRA's products held, and the predictions of a parent."""
    folder = tmp_path_factory.mktemp("forms")
    for form in ("lora", "divergence"):
        engine_run.train(folder / form, batch=8, accumulation=1, form=form, **engine_run.DAMPED)
    return {form: read(folder / form) for form in ("lora", "divergence")}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_hold_adapters_and_predictions_as_one(engine, alone_by_form, tmp_path):
    """Also where the parent is loaded under ZeRO-3, or by one process for all under FSDP2."""
    pytest.importorskip("peft")
    if engine.startswith("deepspeed"):
        pytest.importorskip("deepspeed")
    launch(engine, tmp_path, "--forms")
    for form, (expected, expected_weights) in alone_by_form.items():
        of_form = ("phi/ewc", "phi/grad_ratio") if form == "lora" else ("phi/divergence",)
        assert max(expected[of_form[0]]) > 0.1
        for case in ("plain", "accumulated"):
            result, weights = read(tmp_path / f"{form}-{case}")
            assert (result["engine"], result["processes"]) == (ENGINES[engine][0], 2)
            for key in ("loss", "grad_norm", *of_form):
                assert result[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-6), (form, case, key)
            torch.testing.assert_close(weights, expected_weights, rtol=0, atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_processes_train_with_muon_as_one(engine, tmp_path):
    """GPT-2's fused matrices, sharded across their parts: weights to rounding, resumed ones to the bit."""
    engine_run.train(tmp_path / "alone", batch=8, accumulation=1, **engine_run.MUON)
    launch(engine, tmp_path, "--muon")
    expected, expected_weights = read(tmp_path / "alone")
    for case in ("plain", "accumulated"):
        result, weights = read(tmp_path / case)
        assert (result["engine"], result["processes"]) == (ENGINES[engine][0], 2)
        for key in COMPARED:
            assert result[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-6), (case, key)
        torch.testing.assert_close(weights, expected_weights, rtol=0, atol=1e-5)
    _, weights = read(tmp_path / "plain")
    _, resumed = read(tmp_path / "resumed")
    torch.testing.assert_close(resumed, weights, rtol=0, atol=0)


@pytest.mark.slow
def test_two_processes_train_a_new_layer_alone_as_one(tmp_path):
    """Under FSDP 2, which divides what is frozen too: old layers keep their bits, and resuming those of the new."""
    new_layer_run.grow(tmp_path)
    new_layer_run.train(tmp_path / "child", tmp_path / "alone", batch=8)
    launch("fsdp2", tmp_path, script=new_layer_run.__file__)
    _, expected = read(tmp_path / "alone")
    result, weights = read(tmp_path / "plain")
    assert (result["engine"], result["processes"]) == (ENGINES["fsdp2"][0], 2)
    for name, tensor in load_file(tmp_path / "child" / "model.safetensors").items():
        assert torch.equal(tensor, weights[name]) != name.startswith("transformer.h.2."), name
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)
    _, resumed = read(tmp_path / "resumed")
    torch.testing.assert_close(resumed, weights, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_measure_a_checkpoint_as_one(engine, tmp_path):
    """As a member by average is, with a trainer that has not trained."""
    if engine.startswith("deepspeed"):
        pytest.importorskip("deepspeed")
    checkpoint = tmp_path / "checkpoint"
    engine_run.build_model().save_pretrained(checkpoint)
    expected = measured_run.measure(tmp_path, checkpoint)
    launch(engine, tmp_path, script=Path(measured_run.__file__))
    for rank in (0, 1):
        found = json.loads((tmp_path / f"measured-{rank}.json").read_text())
        assert found["loss"] == pytest.approx(expected.loss, rel=1e-6)


def assert_memory(ranks, alone, *, divides):
    if not divides:
        assert [rank["held_bytes"] for rank in ranks] == [alone["held_bytes"]] * 2
        return
    for rank in ranks:
        # Half of W₀ and Ω, and the bases of matrices whose input side is divided. On the way there, whole tensors of
        # one parameter or two at a time.
        assert rank["held_bytes"] < 0.6 * alone["held_bytes"]
        assert rank["peak_bytes"] <= 4 * engine_run.LARGEST_BYTES
