"""What a run computes in: chosen by the device, unless the configuration says, and never against it."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from hf_progressive.config import TrainingConfig
from hf_progressive.training import precision
from hf_progressive.training.precision import describe, device_settings, evaluation_precision


@pytest.fixture
def on_an_h100(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(precision, "_has_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "compiles_on", lambda device_type: True)


def test_nothing_is_chosen_on_a_cpu():
    assert device_settings(TrainingConfig()) == {}
    assert device_settings(TrainingConfig(precision="bfloat16", compile=True)) == {"bf16": True, "torch_compile": True}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {"bf16": True, "torch_compile": True}),
        ({"precision": "float32"}, {"torch_compile": True}),
        ({"compile": False}, {"bf16": True}),
        ({"arguments": {"bf16": True}}, {"torch_compile": True}),
        ({"arguments": {"bf16": False, "torch_compile": False}}, {}),
        ({"arguments": {"fp16": True}}, {"torch_compile": True}),
        ({"arguments": {"use_cpu": True}}, {}),
    ],
)
@pytest.mark.usefixtures("on_an_h100")
def test_a_gpu_computes_in_bfloat16_and_compiled_unless_told_otherwise(config, expected):
    assert device_settings(TrainingConfig(**config)) == expected


@pytest.mark.parametrize(
    ("config", "device", "rounds"),
    [
        ({}, "cuda", True),
        ({}, "cpu", False),
        ({"precision": "bfloat16"}, "cpu", False),
        ({"precision": "float32"}, "cuda", False),
        ({"arguments": {"bf16": True}}, "cuda", True),
        ({"arguments": {"fp16": True}}, "cuda", False),
    ],
)
@pytest.mark.usefixtures("on_an_h100")
def test_evaluation_computes_as_training_does_on_a_gpu_and_in_float32_elsewhere(config, device, rounds, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "autocast", lambda *given: asked.append(given) or contextlib.nullcontext())
    with evaluation_precision(TrainingConfig(**config), torch.device(device)):
        assert asked == ([("cuda", torch.bfloat16)] if rounds else [])


@pytest.mark.usefixtures("on_an_h100")
def test_the_launch_is_heeded(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert device_settings(TrainingConfig()) == {}
    for other in ("float32", "bfloat16"):
        with pytest.raises(ValueError, match=f"{other}, but the launch's mixed_precision says float16"):
            device_settings(TrainingConfig(precision=other))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    assert device_settings(TrainingConfig()) == {}
    with pytest.raises(ValueError, match="but the launch's mixed_precision says fp8"):
        device_settings(TrainingConfig(precision="float32"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"precision": "float32", "arguments": {"bf16": True}}, "float32 contradicts arguments.bf16: True"),
        (
            {"precision": "bfloat16", "arguments": {"fp16": True}},
            "bfloat16 contradicts arguments.fp16: True",
        ),
        ({"precision": "bfloat16", "arguments": {"bf16": False}}, "precision: bfloat16 contradicts arguments.bf16"),
        ({"compile": False, "arguments": {"torch_compile": True}}, "compile: False contradicts arguments.torch_comp"),
        ({"compile": False, "arguments": {"torch_compile_mode": "default"}}, "arguments.torch_compile_mode: default"),
    ],
)
def test_contradictions_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**config)


@pytest.mark.parametrize(("capability", "rounds"), [((7, 5), False), ((8, 0), True)])
def test_no_rounding_to_tf32_is_told_of_a_device_without_it(capability, rounds, monkeypatch):
    """Under mixed precision it is allowed on every device."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    trainer = SimpleNamespace(
        args=SimpleNamespace(device=torch.device("cuda"), torch_compile=False),
        accelerator=SimpleNamespace(mixed_precision="fp16"),
        model=None,
    )
    assert describe(trainer)["tf32"] is rounds
