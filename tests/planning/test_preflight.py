"""Settings that contradict each other, or ask for what is not here, are refused all at once, before any compute."""

import ast
import inspect
import textwrap
from types import SimpleNamespace

import pytest

from hf_progressive import cli
from hf_progressive.config import load_ladder_config, load_study_config
from hf_progressive.ladder.rung_loop import run_ladder
from hf_progressive.planning import preflight
from hf_progressive.planning.ladder_plan import plan_ladder
from hf_progressive.planning.preflight import find_problems
from hf_progressive.storage import write_manifest
from hf_progressive.study.run import run_study
from hf_progressive.training import training_run as training_run

WRONG = {
    "training.batch_tokens=192": "training.batch_tokens: 192 is 3 blocks of 64, not divisible among 2 processes",
    "training.arguments.bf16=true": "bf16 and fp16 exclude each other",
    "training.arguments.fp16=true": "bf16 and fp16 exclude each other",
    "training.arguments.eval_steps=5": "training.arguments.eval_steps: the ladder evaluates, saves and logs at points",
    "training.arguments.max_steps=5": "training.arguments.max_steps: the ladder sets it from training.tokens_per",
    "training.arguments.learning_rat=1": "training.arguments.learning_rat: unknown argument; did you mean",
    "training.arguments.per_device_train_batch_size=4": "per_device_train_batch_size: the ladder sets it",
    "training.arguments.dataloader_prefetch_factor=2": "prefetch_factor: needs dataloader_num_workers above 0",
    "training.arguments.gradient_checkpointing=maybe": "gradient_checkpointing: expected true or false",
    "training.arguments.report_to=[wandb, tensorbord]": "report_to: wandb is not installed; pip install 'wandb'",
    "training.arguments.optim=adamw_bnb_8bit": "adamw_bnb_8bit needs bitsandbytes, which is not installed",
    "training.arguments.deepspeed=nowhere.json": "training.arguments.deepspeed: nowhere.json: no such file",
    "training.arguments.fsdp=full_shard": "deepspeed and fsdp exclude each other",
    "training.arguments.label_smoothing_factor=0.1": "bits per byte would be those of the smoothed loss",
    "training.arguments.dataloader_drop_last=true": "dataloader_drop_last: validation would leave out the blocks",
    "training.arguments.bf16_full_eval=true": "bf16_full_eval: validation computes as training does",
    "training.arguments.enable_jit_checkpoint=true": "a run that is told to stop saves a checkpoint anyway",
    "growth.options.depth_positon=append": "growth.options.depth_positon: unknown option; did you mean",
    "growth.method=stak": "growth.method: growth method 'stak' is not known; did you mean 'stack'?",
    "core.bundle=nowhere": "core: nowhere/core.yaml: no such file",
    "data.max_validation_tokens=32": "data.max_validation_tokens: 32 is less than one block of 64",
    "data.tokenizer.training_bytes=50": "data.tokenizer.vocab_size: 320 entries cannot come of",
    "model.fields.n_emb=3": "gpt2 has no field 'n_emb'",
}


def test_plan_names_everything_that_is_wrong_in_one_line(capsys):
    assert cli.main(["plan", "ladder_tiny", "--gpus", "2", "--set", *WRONG]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    for message in {*WRONG.values(), "report_to: 'tensorbord' is unknown; did you mean 'tensorboard'?"}:
        assert message in error


def test_a_ladder_refuses_the_same_before_it_writes_anything(capsys, tmp_path):
    run = tmp_path / "run"
    words = ["--set", "training.arguments.report_to=[wandb]", "training.arguments.dataloader_persistent_workers=true"]
    assert cli.main(["ladder", "ladder_tiny", "--output-dir", str(run), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert "wandb is not installed" in error
    assert "dataloader_persistent_workers: needs" in error
    assert "\n" not in error
    assert not run.exists()


def test_a_plain_install_is_told_how_to_report_or_not(monkeypatch):
    monkeypatch.setattr(preflight, "get_available_reporting_integrations", list)
    (problem,) = find_problems(load_ladder_config("ladder_d10_d18", ["training.arguments.report_to=[tensorboard]"]))
    assert "tensorboard is not installed; pip install 'hf-progressive[tensorboard]'" in problem
    assert "--set training.arguments.report_to=none" in problem
    assert find_problems(load_ladder_config("ladder_d10_d18")) == []  # as shipped it asks for no extra


@pytest.mark.parametrize(
    ("launch", "arguments", "fits"),
    [
        ({}, [], True),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, [], True),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, [], False),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, [], False),
        ({}, ["training.arguments.fsdp=full_shard"], True),
        ({}, ["training.arguments.fsdp=full_shard", "training.arguments.fsdp_config={version: 1}"], False),
    ],
)
def test_muon_is_refused_where_matrices_are_flattened(launch, arguments, fits, monkeypatch):
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    refused = "training.optimizer: Muon needs whole matrices, and DeepSpeed and FSDP 1 hand flattened ones"
    problems = find_problems(load_ladder_config("ladder_tiny", ["training.optimizer=muon", *arguments]))
    assert [problem[: len(refused)] for problem in problems] == ([] if fits else [refused])
    assert find_problems(load_ladder_config("ladder_tiny", arguments)) == []


def test_moments_of_another_optimizer_cannot_go_on_in_a_trunk():
    small = "{name: a, n_layer: 2, n_embd: 32, n_head: 2, until: .5, training: {optimizer: muon}}"
    large = "{name: b, n_layer: 3, n_embd: 32, n_head: 2}"
    overrides = [f"rungs=[{small}, {large}]", "schedule=trunk", "cold=[b]", "phi.ewc_lambda=0", "phi.gamma=0"]
    (problem,) = find_problems(load_ladder_config("ladder_tiny", [*overrides, "trunk.moments=grown"]))
    assert problem == (
        "trunk.moments: grown moments need one training.optimizer on all rungs, not a muon, b adamw; take fresh ones"
    )
    assert find_problems(load_ladder_config("ladder_tiny", overrides)) == []


def test_one_rung_s_own_engine_and_optimizer_are_looked_at():
    own = "{optimizer: muon, arguments: {fsdp: full_shard, fsdp_config: {version: 1}}}"
    rungs = f"rungs=[{{name: a, n_layer: 2, n_embd: 32, n_head: 2, training: {own}}}]"
    (problem,) = find_problems(load_ladder_config("ladder_tiny", [rungs, "cold=none"]))
    assert problem.startswith("training.optimizer: Muon needs whole matrices")
    trunk = ["schedule=trunk", "trunk.moments=grown", "rungs.0.until=0.2", "rungs.1.until=0.4"]
    packed = load_ladder_config("ladder_tiny", [*trunk, "training.arguments.optim=adamw_torch_8bit"])
    assert any("only the state of torch's AdamW grows" in problem for problem in find_problems(packed))


@pytest.mark.parametrize(
    "name", ["ladder_tiny", "ladder_small", "trunk_small", "trunk_l16", "ladder_d10_d18", "validation_d15_d16"]
)
def test_nothing_is_wrong_with_what_ships(name):
    assert find_problems(load_ladder_config(name), processes=4) == []


def test_whatever_the_ladder_hands_to_trainer_itself_cannot_be_given_twice():
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(training_run.training_arguments))).body
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    names = {word.arg for call in calls if ast.unparse(call.func).endswith("Arguments") for word in call.keywords}
    for name in names - {None, "per_device_eval_batch_size"}:
        for value in (7, "false"):
            assert find_problems(load_ladder_config("ladder_tiny", [f"training.arguments.{name}={value}"])), name


def test_a_bundle_that_was_mended_is_looked_at_again(monkeypatch):
    config = load_ladder_config("ladder_tiny", ["core.bundle=mended"])
    assert find_problems(config) == ["core: mended/core.yaml: no such file; a bundle holds core.yaml, "
                                     "eval_meta_data.csv and eval_data/"]  # fmt: skip
    monkeypatch.setattr(preflight, "load_bundle", lambda path: SimpleNamespace(select=lambda tasks: ()))
    assert find_problems(config) == []


def test_files_that_are_not_there_are_told_by_a_plan_unless_their_corpus_is_prepared(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["plan", "ladder_tiny", "--set", "data.source=json", "data.files=[texts/*.jsonl]"]
    assert cli.main(words) == 2
    told = "data.files: texts/*.jsonl matches no file; give an existing path or pattern"
    assert capsys.readouterr().err.strip().endswith(told)
    (tmp_path / "runs" / "ladder_tiny" / "data").mkdir(parents=True)
    write_manifest(tmp_path / "runs" / "ladder_tiny" / "data")
    assert cli.main(words) == 0


def test_wrong_values_of_several_sections_are_named_together():
    with pytest.raises(ValueError, match=r"phi\.gamma: expected 0 .*; training\.batch_token: unknown key"):
        load_ladder_config("ladder_tiny", ["training.batch_token=3", "phi.gamma=-1.0"])


@pytest.mark.parametrize(
    ("words", "environment", "messages"),
    [
        (
            ["training.arguments.deepspeed=null"],
            {"ACCELERATE_USE_DEEPSPEED": "true"},
            ["trunk.rewarm", "trunk.moments"],
        ),
        ([], {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, ["trunk.rewarm", "trunk.moments"]),
        ([], {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, []),
        (["training.arguments.optim=adafactor"], {}, ["only the state of torch's AdamW grows"]),
    ],
)
def test_what_a_trunk_cannot_do_is_refused(monkeypatch, words, environment, messages):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = load_ladder_config("trunk_small", ["trunk.rewarm=new", "trunk.moments=grown", *words])
    problems = find_problems(config)
    assert len(problems) == len(messages)
    assert all(message in problem for message, problem in zip(messages, problems, strict=True))
    assert find_problems(load_ladder_config("trunk_small")) == []


def test_every_rung_s_own_settings_are_looked_at():
    config = load_ladder_config("trunk_small", ["rungs.1.training={arguments: {eval_steps: 5}, batch_tokens: 384}"])
    problems = find_problems(config, processes=2)
    assert any("eval_steps: the ladder evaluates" in problem for problem in problems)
    assert any("384 is 3 blocks of 128, not divisible among 2" in problem for problem in problems)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["training.trainable=new_layer"], "training.trainable: 'new_layer' fits none of the accepted forms"),
        (["training.trainable=[]"], "trainable: the list is empty; name patterns, or take all"),
        (["training.trainable=[h.9.*]"], "grown from .*: training.trainable: 'h.9.\\*' matches no parameter"),
        (["training.trainable=new_layers"], "training.trainable: new_layers, but no layer is new in this growth"),
        (
            ["training.trainable=new_entries", "phi.ewc_lambda=1"],
            "training.trainable: new_entries trains only what b's parent has not, of which Ω is 0, so that"
            " phi.ewc_lambda is without effect; set that to 0",
        ),
        (
            ["training.trainable=new_entries", "training.arguments.deepspeed=nowhere.json"],
            "new_entries does not work with DeepSpeed, which takes the optimizer's step",
        ),
    ],
)
def test_what_a_rung_cannot_train_is_refused(words, message):
    rungs = "rungs=[{name: a, n_layer: 1, n_embd: 16, n_head: 2}, {name: b, n_layer: 1, n_embd: 24, n_head: 3}]"
    quiet = ["phi.ewc_lambda=0", "phi.gamma=0", "cold=none", rungs]
    with pytest.raises(ValueError, match=message):
        plan_ladder(load_ladder_config("ladder_tiny", [*quiet, *words]))


def test_omega_of_an_optimizer_that_trained_a_part_is_refused():
    words = ["cold=none", "training.trainable=[transformer.h.*]", "phi.fisher.kind=optimizer"]
    told = "phi.fisher.kind: optimizer has no Ω of what training.trainable froze in l3w32, which l3w48 grows from"
    assert any(problem.startswith(told) for problem in find_problems(load_ladder_config("ladder_tiny", words)))
    for served in ("rungs.1.training={trainable: all}", "phi.fisher.kind=empirical"):
        assert not any(
            "Ω of what" in each for each in find_problems(load_ladder_config("ladder_tiny", [*words, served]))
        )


def test_patterns_and_new_entries_are_planned():
    rungs = "rungs=[{name: a, n_layer: 1, n_embd: 16, n_head: 2}, {name: b, n_layer: 2, n_embd: 24, n_head: 3}]"
    for chosen in ("new_layers", "new_entries", "[transformer.h.1.*]"):
        words = ["phi.ewc_lambda=0", "phi.gamma=0", "cold=none", rungs, f"training.trainable={chosen}"]
        assert len(plan_ladder(load_ladder_config("ladder_tiny", words)).rungs) == 2


@pytest.mark.parametrize("call", [plan_ladder, lambda config: run_ladder(config, "run")])
def test_the_name_of_a_file_is_no_configuration(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in ("ladder.yaml", None, load_study_config("study_tiny")):
        with pytest.raises(ValueError, match=r"config is a .*; give a LadderConfig, as load_ladder_config"):
            call(given)
    with pytest.raises(ValueError, match=r"config is a str; give a StudyConfig, as load_study_config"):
        run_study("study.yaml", "run")
    assert list(tmp_path.iterdir()) == []
