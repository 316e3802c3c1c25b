"""The ladder's configuration: what is accepted, and the one line that refuses the rest."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from hf_progressive.config import (
    GrowthConfig,
    LadderConfig,
    find_config,
    load_ladder_config,
    load_study_config,
    strict_yaml,
)
from hf_progressive.config.credentials import refuse_credentials, without_tokens

CONFIGS = Path(__file__).parents[2] / "configs"

MINIMAL = {"rungs": ["d2", {"name": "wide", "n_layer": 2, "n_embd": 96, "n_head": 6}], "model": {"context": 64}}


def write(folder: Path, value: object) -> Path:
    path = folder / "ladder.yaml"
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value))
    return path


def test_rungs_are_read_in_both_forms(tmp_path: Path) -> None:
    config = load_ladder_config(write(tmp_path, MINIMAL))
    assert [(rung.name, rung.depth) for rung in config.rungs] == [("d2", 2), ("wide", None)]
    assert config.rungs[1].fields == {"n_layer": 2, "n_embd": 96, "n_head": 6}


def test_plain_values_read_back_as_an_equal_configuration(tmp_path: Path) -> None:
    config = load_ladder_config(write(tmp_path, MINIMAL), ["cold=[wide]", "data.source=text", "data.files=[a.txt]"])
    assert load_ladder_config(write(tmp_path, config.to_dict())) == config


def test_a_rung_s_values_are_what_they_mean_however_they_are_written(tmp_path: Path) -> None:
    def read(rate: object) -> LadderConfig:
        rung = {"name": "wide", "n_layer": 2, "n_embd": 96, "n_head": 6, "training": {"learning_rate": rate}}
        return load_ladder_config(write(tmp_path, {**MINIMAL, "rungs": ["d2", rung]}))

    assert read("5e-3") == read(0.005)  # YAML takes 5e-3 for a text
    assert read("5e-3").to_dict()["rungs"][1]["training"] == {"learning_rate": 0.005}


def test_a_first_rung_with_a_source_brings_its_tokenizer(tmp_path: Path) -> None:
    first = {"name": "d2", "source": "org/d2", "revision": "v1"}
    config = load_ladder_config(write(tmp_path, MINIMAL | {"rungs": [first, "d3"]}))
    assert config.to_dict()["rungs"][0] == first
    assert load_ladder_config(write(tmp_path, config.to_dict())) == config
    assert (config.corpus.tokenizer.name, config.corpus.tokenizer.revision) == ("org/d2", "v1")
    assert config.data.tokenizer.name is None
    named = load_ladder_config(write(tmp_path, config.to_dict()), ["data.tokenizer.name=org/other"])
    assert named.corpus == named.data
    with pytest.raises(ValueError, match="growth.parent: 'stable' needs parents trained here, but d2 has a source"):
        load_ladder_config(write(tmp_path, config.to_dict()), ["growth.parent=stable"])


@pytest.mark.parametrize(
    ("given", "overrides", "message"),
    [
        (MINIMAL, [], "the path of a configuration is a dict; give a YAML file's, or the name of one"),
        (None, [], "the path of a configuration is a NoneType; give a YAML file's"),
        ("ladder_tiny", "seed=1", r"overrides is a text; give a list, \['seed=1'\]"),
    ],
)
@pytest.mark.parametrize("load", [load_ladder_config, load_study_config])
def test_what_is_no_path_and_no_list_is_refused(load, given, overrides, message) -> None:
    with pytest.raises(ValueError, match=message):
        load(given, overrides)


def test_a_file_that_is_not_there_is_looked_for_near_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, MINIMAL)
    (tmp_path / "empty").mkdir()
    (tmp_path / "round.yaml").symlink_to("round.yaml")
    for given, message in (
        ("ladder.yml", r"ladder\.yml: no such file; did you mean ladder\.yaml\?"),
        ("laddertiny", r"laddertiny: no such file; did you mean ladder_tiny\?"),
        (str(tmp_path), r"is a run folder; its configuration is .*ladder\.yaml"),
        ("empty", "empty: is a folder; give a YAML file"),
        ("round.yaml", "round.yaml: is a link that leads to no file; give a YAML file"),
        ("/dev/null", "/dev/null: is no file with a text in it; give a YAML file"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            find_config(given)


def test_yaml_that_is_none_is_told_by_line_and_column(tmp_path: Path) -> None:
    for text, message in (
        ("rungs:\n  - {name: a, n_layer: 2 n_embd: 32}\n", r"line 2, column \d+: expected ',' or '}', but got ':'$"),
        ("name: a\n\tseed: 1\n", r"line 2, column 1: found character '\\t' that cannot start any token$"),
    ):
        with pytest.raises(ValueError, match=message):
            load_ladder_config(write(tmp_path, text))


def test_the_configuration_cannot_be_changed(tmp_path: Path) -> None:
    config = load_ladder_config(write(tmp_path, MINIMAL))
    for field in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, None)


def test_overrides_reach_nested_keys_and_list_items(tmp_path: Path) -> None:
    overrides = ["phi.ewc_lambda=1e-3", "rungs.1.n_layer=3", "training.learning_rate=1", "phi.schedule=cosine"]
    config = load_ladder_config(write(tmp_path, MINIMAL), overrides)
    assert config.phi.ewc_lambda == 1e-3
    assert config.rungs[1].fields["n_layer"] == 3
    assert config.training.learning_rate == 1.0
    assert config.phi.schedule == "cosine"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phi.ewc_lamda=1", r"phi\.ewc_lamda: unknown key; did you mean 'ewc_lambda'\?"),
        ("ruungs=[d2]", r"ruungs: unknown key; did you mean 'rungs'\?"),
        ("seed=high", r"seed: expected a whole number, got 'high'"),
        ("training.learning_rate=fast", r"training\.learning_rate: expected a number, got 'fast'"),
        ("training.keep_stable=1", r"training\.keep_stable: expected true or false, got 1"),
        ("phi.schedule=step", r"phi\.schedule: 'step' is not one of constant, linear, cosine"),
        (
            "phi.fisher.kind=true",
            r"kind: True is not one of empirical, true, .*; put it in quotes, .*: YAML reads no text",
        ),
        ("phi.fisher.kind=no", r"kind: False is not one of empirical, true, optimizer, ones$"),
        (
            "name=2024",
            r"name: expected text, got 2024; put it in quotes, \"\.\.\.\" \(on a command line '\"\.\.\.\"'\)",
        ),
        ("name=no", r"name: expected text, got False; put it in quotes"),
        ("name=[x]", r"name: expected text, got \['x'\]$"),
        ("phi.gamma=-1", r"phi\.gamma: expected 0 or more, got -1\.0"),
        ("phi.gamma=.nan", r"phi\.gamma: nan is not a finite number"),
        ("training.weight_decay=.nan", r"training\.weight_decay: nan is not a finite number"),
        ("training.optimizer=muno", r"training\.optimizer: .*muno.*muon"),
        ("training.muon_learning_rate=1e-2", r"muon_learning_rate: 0\.01 needs optimizer: muon; set that"),
        ("training.weight_decay=-1", r"training\.weight_decay: expected 0 or more, got -1\.0"),
        ("training.arguments={eps: [1, .inf]}", r"training\.arguments\.eps\.1: inf is not a finite number"),
        (f"model.fields={'[' * 5000}", r"override of model\.fields: is nested too deeply"),
        ("phi=1", r"phi: expected a mapping"),
        ("rungs=[]", r"rungs: the list is empty"),
        ("rungs=d2", r"rungs: expected a list, got 'd2'; write \['d2'\]"),
        ("data.tokenizer=gpt2", r"data\.tokenizer: expected .*, got 'gpt2'; its keys are name, revision, vocab_size"),
        ("training.lr=1e-3", r"training\.lr: unknown key; here it is learning_rate"),
        ("training.report_to=none", r"unknown key; it is Trainer's; write `arguments: \{report_to: \.\.\.\}`"),
        ("training.seed=1", r"training\.seed: unknown key; the ladder has one `seed`, at its top"),
        ("growth.noise=1", r"growth\.noise: unknown key; .*; options of a method go under `options`"),
        ("cold=some", r"cold: 'some' fits none of the accepted forms: all, none, or a list"),
        ("rungs=[deep]", r"rungs\.0: 'deep' is no depth; write d11"),
        ("rungs=[d2, d2]", r"rungs: the name 'd2' is given to 2 rungs"),
        ("rungs.1.name=a/b", r"rungs\.1\.name: 'a/b' cannot name a folder"),
        (f"rungs.1.name={'x' * 101}", r"rungs\.1\.name: 'x+\.\.\. cannot name a folder; .* 100 at the most"),
        (
            "rungs.1.name=data",
            r"rungs\.1\.name: 'data' is what the run itself writes beside its rungs; choose another",
        ),
        ("rungs.0={name: x, family: llama, n_layer: 2}", r"rungs\.0\.family: of the first rung it is model\.family"),
        ("rungs=[d0]", r"rungs\.0: expected 1 to 1e\+15, got 0"),
        ("cold=[wide, wide]", r"cold: 'wide' is given twice; list each once"),
        ("name=' '", r"name: ' ' cannot name a folder; leave out"),
        ("name=../x", r"name: '\.\./x' cannot name a folder; leave out"),
        ('name="a\\nb"', r"name: 'a\\nb' cannot name a folder; leave out"),
        (f"name={'x' * 101}", r"name: 'x+\.\.\. cannot name a folder; .* 100 characters at the most"),
        (
            "training.tokens_per_parameter=1e300",
            r"tokens_per_parameter: expected above 0, at most 1,000,000, got 1e\+300",
        ),
        ("rungs=[{n_layer: 2}]", r"rungs\.0: a rung with explicit fields needs a name"),
        ("rungs=[{name: x, depth: 2, n_layer: 2}]", r"rungs\.0\.x: give either a depth or explicit fields"),
        ("rungs.0={name: x, source: o/x, depth: 2}", r"rungs\.0\.x: a rung with a source has its sizes; leave depth"),
        ("rungs.0={source: o/x}", r"rungs\.0: a rung with a source needs a name"),
        ("rungs.0={depth: 2, revision: v1}", r"rungs\.0\.d2: revision 'v1' without a source; name the source"),
        ("rungs.1={name: x, source: o/x}", r"rungs: x has a source, but only the first rung can be taken over"),
        ("data.tokenizer.revision=v1", r"data\.tokenizer\.revision: 'v1' without a name; name the tokenizer"),
        ("cold=[d3]", r"cold: 'd3' is no grown rung"),
        ("training.batch_tokens=100", r"batch_tokens: 100 is not a multiple of the context, 64 tokens"),
        ("training.decay_fraction=0.99", r"warm-up and decay together are 1\.01"),
        ("data.source=text", r"data\.files: the source 'text' needs the files to read"),
        ("data.files=[a.txt]", r"data\.files: only text, json and parquet read files"),
        ("data.tokenizer.vocab_size=256", r"data\.tokenizer\.vocab_size: expected 257 to 10,000,000, got 256"),
        ("data={source: text, files: ['']}", r"data\.files: a text is empty; leave it out"),
        ("data={source: text, files: [a.txt, ~/b.txt]}", r"data\.files: '~/b\.txt': only a shell knows '~'; write"),
        ("data.tokenizer.name=~/tokenizer", r"data\.tokenizer\.name: '~/tokenizer': only a shell knows '~'"),
        ("rungs.0={name: x, source: ~/x}", r"rungs\.0\.source: '~/x': only a shell knows '~'"),
        ("data.source=''", r"data\.source: a text is empty; leave it out"),
        ("data.tokenizer.name=''", r"data\.tokenizer\.name: a text is empty; leave it out"),
        ("phi.gamma", r"override 'phi\.gamma': expected key\.path=value"),
        ("rungs.7.n_layer=3", r"override .*: rungs\.7 needs an index from 0 to 1"),
        ("rungs.²=d2", r"override .*: rungs\.² needs an index from 0 to 1"),
        ("..=1", r"yaml: '': unknown key; known: cold"),
        ("phi.=1", r"phi\.'': unknown key; known: apply"),
        ("seed=&x [*x]", r"override of seed: line 1: an alias stands for what it is in"),
    ],
)
def test_a_mistake_is_named_in_one_line(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_ladder_config(write(tmp_path, MINIMAL), [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rungs: [d2\n", "not valid YAML"),
        ("- d2\n", "holds a list, expected a mapping"),
        ("seed: 1\nseed: 2\nrungs: [d2]\n", "line 2: the key 'seed' is given twice"),
        ("seed: 1\n", "rungs is missing; it has no default"),
        (f"rungs: {'[' * 5000}{']' * 5000}", "nested too deeply"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        load_ladder_config(path)
    assert str(path) in str(caught.value)


TOKEN = "hf_" + "AbCdEfGhIj" * 3 + "KlMn"


@pytest.mark.parametrize(
    "override",
    [
        "training.arguments={hub_token: hf_short}",
        f"training.arguments={{run_name: 'by {TOKEN}'}}",
        f"name={TOKEN}",
        f"model.fields={{{TOKEN}: 1}}",
        f"data.files=['https://x/y?key={TOKEN}']",
        "training.arguments={deep: [{WANDB_API_KEY: k}]}",
        f"seed={TOKEN}",  # of the wrong type too: no other message may repeat it
    ],
)
@pytest.mark.parametrize("study", [False, True])
def test_a_credential_is_refused_without_being_repeated(tmp_path: Path, override: str, study: bool) -> None:
    path = write(tmp_path, {"ladder": MINIMAL} if study else MINIMAL)
    load = load_study_config if study else load_ladder_config
    with pytest.raises(ValueError, match="a credential, .* set the HF_TOKEN environment variable") as caught:
        load(path, [f"ladder.{override}" if study else override])
    assert not any(secret in str(caught.value) for secret in ("hf_short", TOKEN))
    assert without_tokens(f"override {override}").count("***") == (TOKEN in override)


def test_special_tokens_are_no_credentials_and_code_is_refused_one_as_well(tmp_path: Path) -> None:
    refuse_credentials({"bos_token": "<s>", "eos_token_id": 1, "use_auth_token": True, "hub_token": None})
    config = load_ladder_config(write(tmp_path, MINIMAL))
    with pytest.raises(ValueError, match=r"training\.arguments\.hub_token: holds a credential"):
        dataclasses.replace(config, training=dataclasses.replace(config.training, arguments={"hub_token": "x"}))


def test_a_missing_file_lists_what_ships(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="ladder_small"):
        load_ladder_config(tmp_path / "none.yaml")
    assert find_config("ladder_small").is_file()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path: Path) -> None:
    if path.stem.startswith("study_"):
        assert load_study_config(path).name == path.stem
    else:
        assert isinstance(load_ladder_config(path), LadderConfig)


def test_a_text_that_yaml_takes_for_a_truth_value_is_one_in_quotes() -> None:
    config = load_ladder_config("ladder_tiny", ["phi.ewc_lambda=1", 'phi.fisher.kind="true"', 'name="2024"'])
    assert (config.phi.fisher.kind, config.name) == ("true", "2024")


def test_strict_conversion_accepts_the_exponents_that_yaml_takes_for_text() -> None:
    assert strict_yaml.convert(float, "1e-3", "x") == 1e-3
    with pytest.raises(ValueError, match="x: expected a whole number, got True"):
        strict_yaml.convert(int, True, "x")


def test_the_example_of_how_to_write_a_ladder_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/how_to/ladder.md").read_text(encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(page.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8")
    config = load_ladder_config(path)
    assert [rung.name for rung in config.rungs] == ["small", "large"]


def test_a_growth_that_should_keep_the_function_and_does_not_is_refused():
    growth = GrowthConfig(max_relative_logit_difference=1e-5)
    growth.require_kept_function("rung l2", difference=2e-5, scale=2.0)
    with pytest.raises(ValueError, match=r"rung l2: its logits differ from its parent's by 0\.001 at a scale of 2, "):
        growth.require_kept_function("rung l2", difference=1e-3, scale=2.0)


def refused_as_idle(tmp_path: Path, overrides: list[str], keys: str, reason: str) -> Path:
    """Check that a ladder of three rungs is refused with these overrides, and return its file."""
    rungs = [{"name": f"l{layers}", "n_layer": layers, "n_embd": 16, "n_head": 2} for layers in (1, 2, 3)]
    path = write(tmp_path, MINIMAL | {"rungs": rungs})
    with pytest.raises(ValueError, match="without effect") as raised:
        load_ladder_config(path, overrides)
    left_out = "them" if "," in keys else "it"
    assert str(raised.value) == f"{path}: {keys}: without effect, for {reason}, or leave {left_out} out"
    return path


WEIGHTLESS = {
    "a form": (["phi.apply=proximal"], "phi.apply"),
    "two forms": (["phi.schedule=constant", "phi.until=0.1"], "phi.schedule, phi.until"),
    "a rung's": (["rungs.1.phi={schedule: constant}"], "rungs.1.phi.schedule"),
    "beside a rung with a weight": (
        ["rungs.1.phi={until: 0.1}", "rungs.2={name: l3, n_layer: 3, n_embd: 16, n_head: 2, phi: {gamma: 1}}"],
        "rungs.1.phi.until",
    ),
}


@pytest.mark.parametrize(("overrides", "keys"), WEIGHTLESS.values(), ids=WEIGHTLESS)
def test_a_form_of_phi_without_a_weight_is_refused(tmp_path: Path, overrides: list[str], keys: str) -> None:
    path = refused_as_idle(
        tmp_path, overrides, keys, "neither ewc_lambda nor gamma is given; give one (0 leaves Φ off)"
    )
    for weight in ("phi.ewc_lambda=0", "phi.gamma=0", "phi.gamma=1.0"):  # who says 0 knows it
        config = load_ladder_config(path, [*overrides, weight])
        again = tmp_path / "run.yaml"  # as a run writes it
        again.write_text(yaml.safe_dump(config.to_dict()))
        assert load_ladder_config(again) == config


TERMLESS = {
    "λ": (["phi.ewc_lambda=1", "phi.subspace.energy=0.9"], "phi.subspace.energy", "gamma"),
    "γ": (
        ["phi.gamma=1", "phi.fisher={kind: ones, sequences: 4}"],
        "phi.fisher.kind, phi.fisher.sequences",
        "ewc_lambda",
    ),
    "a rung's λ": (["rungs.1.phi={ewc_lambda: 1, subspace: {side: inside}}"], "rungs.1.phi.subspace.side", "gamma"),
}


@pytest.mark.parametrize(("overrides", "keys", "missing"), TERMLESS.values(), ids=TERMLESS)
def test_what_a_term_of_phi_is_made_of_is_refused_without_its_weight(
    tmp_path: Path, overrides: list[str], keys: str, missing: str
) -> None:
    path = refused_as_idle(tmp_path, overrides, keys, f"{missing} is not given; give it (0 leaves its term off)")
    for weight in (0, 1):
        load_ladder_config(path, [*overrides, f"phi.{missing}={weight}"])
        load_ladder_config(path, [*overrides, f"rungs.1.phi.{missing}={weight}"])
    read_for_both = load_ladder_config(
        path, ["phi.gamma=1", "phi.subspace.source=gradients", "phi.fisher.batch_size=2"]
    )
    assert read_for_both.phi.fisher.batch_size == 2


def test_a_ladder_may_give_the_form_of_phi_and_a_rung_the_weight(tmp_path: Path) -> None:
    rungs = [{"name": f"l{layers}", "n_layer": layers, "n_embd": 16, "n_head": 2} for layers in (1, 2)]
    rungs[1]["phi"] = {"ewc_lambda": 0.5}
    config = load_ladder_config(write(tmp_path, MINIMAL | {"rungs": rungs, "phi": {"apply": "proximal"}}))
    assert (config.phi.is_off, config.phi_of("l2").apply, config.phi_of("l2").ewc_lambda) == (True, "proximal", 0.5)
    for preset in ("ladder_tiny", "ladder_small", "ladder_d10_d18", "validation_d15_d16"):
        assert load_ladder_config(preset, ["phi.ewc_lambda=0", "phi.gamma=0"]).phi.is_off
