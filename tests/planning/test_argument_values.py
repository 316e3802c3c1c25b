"""What `training.arguments` gives, against the types that `TrainingArguments` declares, field by field."""

import dataclasses
import typing

import pytest

from hf_progressive import cli
from hf_progressive.config import load_ladder_config
from hf_progressive.planning.argument_values import check_argument_value
from hf_progressive.planning.preflight import find_problems
from hf_progressive.training.arguments import ProgressiveTrainingArguments

NAMES = [field.name for field in dataclasses.fields(ProgressiveTrainingArguments)]
HINTS = typing.get_type_hints(ProgressiveTrainingArguments)
NO_VALUE = (float("nan"), float("inf"), 10**400, -(10**12), object(), {"a": float("nan")}, [1], [[]])


@pytest.mark.parametrize("name", NAMES)
def test_what_no_argument_can_be_is_refused_by_its_path(name):
    for value in NO_VALUE:
        with pytest.raises(ValueError, match=rf"^training\.arguments\.{name}\b") as caught:
            check_argument_value(name, value)
        assert "\n" not in str(caught.value)
    if HINTS[name] in (bool, int, float):
        for value in ("x", None, [], {}, *([1, 0] if HINTS[name] is bool else [True])):
            with pytest.raises(ValueError, match=rf"^training\.arguments\.{name}: expected "):
                check_argument_value(name, value)


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_taken(name):
    field = next(field for field in dataclasses.fields(ProgressiveTrainingArguments) if field.name == name)
    default = field.default_factory() if field.default is dataclasses.MISSING else field.default
    if type(default) in (bool, int, float, str, list, type(None)):  # what YAML can say
        check_argument_value(name, default)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("adam_epsilon", "1e-8", "expected a number, got '1e-8'; write 1.0e-8 for 1e-8"),
        ("adam_epsilon", 0.0, "expected above 0, at most 1, got 0.0"),
        ("dataloader_num_workers", 10**6, "expected 0 to 1,024, got 1000000"),
        ("log_level", "loud", "'loud' is unknown; known: critical"),
        ("optim", "adamw_torchh", "'adamw_torchh' is unknown; did you mean 'adamw_torch'"),
        ("hub_strategy", "ever_save", "did you mean 'every_save'"),
        ("include_num_input_tokens_seen", "al", "did you mean 'all'"),
        ("gradient_checkpointing_kwargs", "{", "not valid JSON"),
        ("gradient_checkpointing_kwargs", "nowhere", "nowhere: no such file"),
        ("accelerator_config", {"split_batch": True}, "did you mean 'split_batches'"),
        ("accelerator_config", {"even_batches": "x"}, "accelerator_config.even_batches: expected true or false, got"),
        ("liger_kernel_config", {"rope": 1}, "expected a mapping, or nothing"),
        ("trackio_static_space_id", True, "expected text"),
    ],
)
def test_a_value_out_of_place_is_told_with_what_is_right(name, value, message):
    with pytest.raises(ValueError, match=rf"^training\.arguments\.{name}") as caught:
        check_argument_value(name, value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("report_to", ["tensorboard"]),
        ("fsdp_config", {"version": 2}),
        ("gradient_checkpointing_kwargs", '{"use_reentrant": false}'),
        ("accelerator_config", {"even_batches": False, "dispatch_batches": None}),
        ("trackio_static_space_id", False),
        ("local_rank", -1),
        ("neftune_noise_alpha", 5),
        ("debug", "underflow_overflow"),
    ],
)
def test_what_transformers_takes_is_taken(name, value):
    check_argument_value(name, value)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (["data.revision=main"], "data.revision"),
        (["data.text_column=body"], "data.text_column"),
        (["data.validation_files=[a.txt]"], "data.validation_files"),
        (["data.source=text", "data.files=[a]", "data.split=test"], "data.split"),
        (
            ["data.source=text", "data.files=[a]", "data.validation_files=[b]", "data.validation_fraction=0.1"],
            "data.validation_fraction",
        ),
        (["data.tokenizer={name: gpt2, vocab_size: 512}"], "data.tokenizer.vocab_size"),
        (["model.aspect_ratio=32"], "model.aspect_ratio"),
    ],
)
def test_a_key_without_effect_is_refused(changes, key):
    problems = find_problems(load_ladder_config("ladder_tiny", changes))
    assert any(problem.startswith(f"{key}: without effect, for ") for problem in problems)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("model.fields.resid_pdrop=2.0", "resid_pdrop: expected 0 to 1, got 2.0"),
        ("model.fields.initializer_range=-1.0", "initializer_range: expected 0 to 1,000, got -1.0"),
        ("model.fields.bos_token_id=-5", "bos_token_id: expected 0 to 16,777,216, got -5"),
        ("rungs.0.n_layer=100000000", "n_layer is 100,000,000; 10,000 are the most that is planned"),
        ("rungs.0.n_embd=1000000000000", "n_embd is 1,000,000,000,000; 16,777,216 are the most"),
        ("training.arguments.adam_epsilon=-1.0", "training.arguments.adam_epsilon: expected above 0, at most 1"),
        ("growth.options={noise: 1000000000000000000000000000000}", "growth.options.noise=1"),
    ],
)
def test_plan_refuses_numbers_that_no_model_has(changes, message, capsys):
    assert cli.main(["plan", "ladder_tiny", "--set", changes]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error


@pytest.mark.parametrize(
    "words",
    [
        *(["plan", "c", f"--budget-hours={value}"] for value in ("0", "nan", "-1", "1e400")),
        *(["plan", "c", f"--budget-dollars={value}"] for value in ("0", "nan", "-1", "inf", "x")),
        *(["grow", "a", "b", f"--seed={value}"] for value in ("-1", "1" * 40, "9" * 5000, "1.5")),
        *(["verify", "a", "b", f"--sequences={value}"] for value in ("0", "1000000000000")),
        *(["core", "a", "--bundle", "b", f"--max-per-task={value}"] for value in ("0", "-1")),
        ["core", "a", "--bundle", "b", "--dtype=x"],
    ],
)
def test_a_number_on_the_command_line_is_refused_by_its_option(words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"argument {words[-1].partition('=')[0]}: " in last
    assert len(last) < 300
