"""FSDP2 and DeepSpeed ZeRO on one device train as one process alone does there, and resume to what they had."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

TESTS = Path(__file__).parents[1]
CONFIGS = TESTS.parent / "configs" / "accelerate"
SCRIPT = TESTS / "distributed" / "engine_works.py"
COMPARED = ("loss", "grad_norm", "phi/ewc", "phi/subspace", "phi/grad_ratio", "phi/lambda")
TIMEOUT_SECONDS = 90
ENGINES = {
    "fsdp2": "DistributedType.FSDP",
    "deepspeed_zero2": "DistributedType.DEEPSPEED",
    "deepspeed_zero3": "DistributedType.DEEPSPEED",
}
ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
import engine_run
engine_run.train(sys.argv[2], batch=4, accumulation=1, use_cpu=False)
"""


def finish(process):
    try:
        output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0, output[-4000:]


def started(command):
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def read(folder):
    return json.loads((folder / "result-0.json").read_text()), load_file(folder / "weights.safetensors")


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_on_one_device_trains_as_a_process_alone(engine, cuda, tmp_path):
    """4 × 1 and 2 × 2 sequences a step, in float32."""
    if engine.startswith("deepspeed") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    launch = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{engine}.yaml"),
        "--num_processes", "1", "--mixed_precision", "no", "--main_process_port", "0",
        str(SCRIPT), str(tmp_path), "phi", "--on-device",
    ]  # fmt: skip
    divided = started(launch)
    alone = started([sys.executable, "-c", ALONE, str(SCRIPT.parent), str(tmp_path / "alone")])
    finish(alone)
    finish(divided)
    expected, expected_weights = read(tmp_path / "alone")
    assert expected["engine"] == "DistributedType.NO"
    for case in ("plain", "accumulated"):
        result, weights = read(tmp_path / "phi" / case)
        assert (result["engine"], result["processes"]) == (ENGINES[engine], 1)
        for key in COMPARED:
            assert result[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-6), (case, key)
        torch.testing.assert_close(weights, expected_weights, rtol=0, atol=1e-5)
    _, weights = read(tmp_path / "phi" / "plain")
    _, resumed = read(tmp_path / "phi" / "resumed")
    torch.testing.assert_close(resumed, weights, rtol=0, atol=1e-6)
