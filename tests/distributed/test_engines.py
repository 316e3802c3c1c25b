"""One trajectory, whatever the engine: two processes under `accelerate launch` against one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import engine_run
import engine_works
import measured_run
import new_layer_run
import pytest
import torch
from safetensors.torch import load_file

CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"
SCRIPT = Path(engine_works.__file__)

ENGINES = {
    # config → the engine that must have run, whether it divides the anchor
    "ddp": ("DistributedType.MULTI_CPU", False),
    "deepspeed_zero1": ("DistributedType.DEEPSPEED", True),
    "deepspeed_zero2": ("DistributedType.DEEPSPEED", True),
    "deepspeed_zero3": ("DistributedType.DEEPSPEED", True),
    "fsdp2": ("DistributedType.FSDP", True),
}
WORKS = {engine: ["measured", "phi", "proximal", "lora", "divergence"] for engine in ENGINES}
WORKS["ddp"] += ["muon"]
WORKS["fsdp2"] += ["muon", "new_layer"]
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


def launch(engine, folder, works):
    """Two CPU processes with the engine's own configuration; only what a CPU cannot do is overridden."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{engine}.yaml"),
        "--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0",
        str(SCRIPT), str(folder), *works,
    ]  # fmt: skip
    if engine == "fsdp2":
        command.append("--fsdp")
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module", params=ENGINES)
def launched(request, tmp_path_factory):
    """An engine, and the folder with all that its two processes did in one launch."""
    engine = request.param
    for needed in ("peft", *(["deepspeed"] if engine.startswith("deepspeed") else [])):
        pytest.importorskip(needed)
    folder = tmp_path_factory.mktemp(engine)
    engine_run.build_model().save_pretrained(folder / "measured" / "checkpoint")
    if "new_layer" in WORKS[engine]:
        new_layer_run.grow(folder / "new_layer")
    launch(engine, folder, WORKS[engine])
    return engine, folder


def test_two_processes_train_as_one(alone, tmp_path):
    """8 × 1 on one process, 4 × 1 and 2 × 2 on two: loss, gradient norm, Φ and weights to float32 rounding."""
    launch("ddp", tmp_path, ["phi"])
    assert_trained_as_one("ddp", tmp_path / "phi", alone)


@pytest.mark.slow
def test_two_processes_of_any_engine_train_as_one(launched, alone):
    engine, folder = launched
    assert_trained_as_one(engine, folder / "phi", alone)


@pytest.mark.slow
def test_what_an_engine_saved_is_not_gone_on_from_without_it(launched, tmp_path):
    """The moments would be left behind; those of DDP are whole, and one process reads them."""
    engine, folder = launched
    checkpoint = str(folder / "phi" / "plain" / "checkpoint-2")
    if engine == "ddp":
        engine_run.train(tmp_path, batch=8, accumulation=1, resume=checkpoint)
        torch.testing.assert_close(read(tmp_path)[1], read(folder / "phi" / "plain")[1], rtol=0, atol=2e-6)
        return
    form = "FSDP" if engine == "fsdp2" else "DeepSpeed"
    with pytest.raises(ValueError, match=f"checkpoint-2: was saved under {form}, and .* go on under {form}"):
        engine_run.train(tmp_path, batch=8, accumulation=1, resume=checkpoint)


def assert_trained_as_one(engine, folder, alone):
    expected, expected_weights = alone
    kind, divides = ENGINES[engine]
    for case in ("plain", "accumulated"):
        result, weights = read(folder / case)
        assert (result["engine"], result["processes"]) == (kind, 2)
        for key in COMPARED:
            assert result[key] == pytest.approx(expected[key], rel=2e-6, abs=1e-7), (case, key)
        torch.testing.assert_close(weights, expected_weights, rtol=0, atol=2e-6)
        ranks = [json.loads((folder / case / f"result-{rank}.json").read_text()) for rank in (0, 1)]
        assert_memory(ranks, expected, divides=divides)
    assert_resumed(folder)


def assert_resumed(folder):
    """From the middle, to the same bits."""
    _, weights = read(folder / "plain")
    _, resumed = read(folder / "resumed")
    torch.testing.assert_close(resumed, weights, rtol=0, atol=0)


@pytest.fixture(scope="module")
def alone_proximal(tmp_path_factory):
    """One process, Φ after the optimizer's step."""
    folder = tmp_path_factory.mktemp("proximal")
    engine_run.train(folder, batch=8, accumulation=1, **engine_run.PROXIMAL)
    return read(folder)


@pytest.mark.slow
def test_two_processes_take_the_proximal_step_as_one(launched, alone_proximal):
    """Two groups of parameters, one without weight decay: ZeRO steps its master weights group by group."""
    engine, folder = launched
    expected, expected_weights = alone_proximal
    assert expected["phi/moved_ratio"][0] > 0.2
    result, weights = read(folder / "proximal" / "plain")
    assert (result["engine"], result["processes"]) == (ENGINES[engine][0], 2)
    for key in ("loss", "grad_norm", "phi/ewc", "phi/subspace", "phi/moved_ratio", "phi/lambda"):
        assert result[key] == pytest.approx(expected[key], rel=5e-6, abs=1e-7), key
    torch.testing.assert_close(weights, expected_weights, rtol=0, atol=2e-6)
    assert_resumed(folder / "proximal")


@pytest.fixture(scope="module")
def alone_by_form(tmp_path_factory):
    """One process, LoRA's products held, and the predictions of a parent."""
    folder = tmp_path_factory.mktemp("forms")
    for form in ("lora", "divergence"):
        engine_run.train(folder / form, batch=8, accumulation=1, form=form, **engine_run.DAMPED)
    return {form: read(folder / form) for form in ("lora", "divergence")}


@pytest.mark.slow
def test_two_processes_hold_adapters_and_predictions_as_one(launched, alone_by_form):
    """Also where the parent is loaded under ZeRO-3, or by one process for all under FSDP2."""
    engine, folder = launched
    for form, (expected, expected_weights) in alone_by_form.items():
        of_form = ("phi/ewc", "phi/grad_ratio") if form == "lora" else ("phi/divergence",)
        assert max(expected[of_form[0]]) > 0.1
        for case in ("plain", "accumulated"):
            result, weights = read(folder / form / case)
            assert (result["engine"], result["processes"]) == (ENGINES[engine][0], 2)
            for key in ("loss", "grad_norm", *of_form):
                assert result[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-6), (form, case, key)
            torch.testing.assert_close(weights, expected_weights, rtol=0, atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("launched", [engine for engine in ENGINES if "muon" in WORKS[engine]], indirect=True)
def test_two_processes_train_with_muon_as_one(launched, tmp_path):
    """GPT-2's fused matrices, sharded across their parts: weights to rounding, resumed ones to the bit."""
    engine, folder = launched
    engine_run.train(tmp_path / "alone", batch=8, accumulation=1, **engine_run.MUON)
    expected, expected_weights = read(tmp_path / "alone")
    for case in ("plain", "accumulated"):
        result, weights = read(folder / "muon" / case)
        assert (result["engine"], result["processes"]) == (ENGINES[engine][0], 2)
        for key in COMPARED:
            assert result[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-6), (case, key)
        torch.testing.assert_close(weights, expected_weights, rtol=0, atol=1e-5)
    assert_resumed(folder / "muon")


@pytest.mark.slow
@pytest.mark.parametrize("launched", [engine for engine in ENGINES if "new_layer" in WORKS[engine]], indirect=True)
def test_two_processes_train_a_new_layer_alone_as_one(launched, tmp_path):
    """Under FSDP 2, which divides what is frozen too: old layers keep their bits, and resuming those of the new."""
    engine, folder = launched
    child = folder / "new_layer" / "child"
    new_layer_run.train(child, tmp_path / "alone", batch=8)
    _, expected = read(tmp_path / "alone")
    result, weights = read(folder / "new_layer" / "plain")
    assert (result["engine"], result["processes"]) == (ENGINES[engine][0], 2)
    for name, tensor in load_file(child / "model.safetensors").items():
        assert torch.equal(tensor, weights[name]) != name.startswith("transformer.h.2."), name
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)
    assert_resumed(folder / "new_layer")


@pytest.mark.slow
def test_two_processes_measure_a_checkpoint_as_one(launched, tmp_path):
    """As a member by average is, with a trainer that has not trained."""
    _, folder = launched
    expected = measured_run.measure(tmp_path, folder / "measured" / "checkpoint")
    for rank in (0, 1):
        found = json.loads((folder / "measured" / f"measured-{rank}.json").read_text())
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
