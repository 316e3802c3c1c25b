"""The command that carries out studies on one GPU, rehearsed on the CPU: it ends, goes on elsewhere, and says no."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "gpu"
STUDY = """
name: {name}
ladder:
  name: small
  model: {{family: llama, context: 32, fields: {{tie_word_embeddings: true}}}}
  rungs:
    - {{name: l2w16, num_hidden_layers: 2, hidden_size: 16, num_attention_heads: 2, intermediate_size: 32}}
  cold: none
  data:
    source: json
    files: [sums.jsonl]
    validation_fraction: 0.1
    max_validation_tokens: 1024
    tokenizer: {{vocab_size: 300, training_bytes: 50_000}}
  training: {{tokens_per_parameter: 0.2, batch_tokens: 128, micro_batch_size: 4, evaluations: 1, checkpoints: 1}}
seeds: [0]
cold_fractions: [0.5, 1.0]
child_fractions: [1.0]
recipes:
  - name: stacked
    set: {{growth.method: stack}}
    trunk:
      - name: l1w16
        num_hidden_layers: 1
        hidden_size: 16
        num_attention_heads: 2
        intermediate_size: 32
        until: 0.3
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    lines = [json.dumps({"text": " ".join(f"{a} and {b} make {a + b}." for b in range(20))}) for a in range(120)]
    (folder / "sums.jsonl").write_text("\n".join(lines))
    for name in ("first", "second"):
        (folder / f"{name}.yaml").write_text(STUDY.format(name=name))
    return folder


def start(*arguments, timeout):
    command = [sys.executable, str(FOLDER / "studies.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd="/")


@pytest.mark.slow
def test_studies_end_and_go_on_elsewhere(files, tmp_path):
    """With results alone in another folder nothing but what is missing is trained, and the record is the same."""
    arguments = ("--minutes", 20, "--workers", 2, "--rehearse", "--set", "ladder.training.tokens_per_parameter=0.2")
    given = ("--data", files / "sums.jsonl", files / "first.yaml", files / "second.yaml")
    done = start("--out", tmp_path / "out", *arguments, *given, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    records = {}
    for name in ("first", "second"):
        record = records[name] = json.loads((tmp_path / "out" / name / "study.json").read_text())
        assert record["complete"], done.stdout + done.stderr
        assert record["environment"]["devices"] == record["environment"]["device_name"] != ""
        assert not record["failed"]
    assert json.loads((tmp_path / "out" / "studies.json").read_text())["status"] == "finished"
    assert f"first: {records['first']['finished']} of {records['first']['runs']} runs\n" in done.stdout
    assert "bits per byte above from scratch" in done.stdout

    results = tmp_path / "out" / "first" / "results"
    kept = {path.name: path.read_bytes() for path in results.iterdir()}
    trunk = next(run for recipe in records["first"]["recipes"] for run in recipe["points"])["points"][0]["task"]
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(results, elsewhere / "first" / "results")
    (elsewhere / "first" / "results" / f"{trunk}.json").unlink()
    again = start("--out", elsewhere, *arguments, *given[:-1], timeout=600)
    assert again.returncode == 0, again.stdout + again.stderr
    found = {path.name: path.read_bytes() for path in (elsewhere / "first" / "results").iterdir()}
    assert found.keys() == kept.keys()
    assert json.loads(found[f"{trunk}.json"])["bits_per_byte"] == json.loads(kept[f"{trunk}.json"])["bits_per_byte"]
    cold = {run["task"] for runs in records["first"]["cold"] for run in runs["points"]}
    assert cold
    assert all(found[f"{task}.json"] == kept[f"{task}.json"] for task in cold)  # not trained again


@pytest.mark.slow
def test_the_time_over_ends_with_what_is_done(files, tmp_path):
    given = ("--data", files / "sums.jsonl", files / "first.yaml", "--workers", 1, "--rehearse")
    done = start("--out", tmp_path / "out", "--minutes", 0.4, *given, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "out" / "studies.json").read_text())["status"] == "stopped"
    assert "not finished" in done.stdout


def pretended(active, *, started=0, complete=False):
    study = SimpleNamespace(active=active, complete=complete, workers=SimpleNamespace(processes=[None] * started))
    study.added = 0
    study.start = lambda number: setattr(study, "added", study.added + number)
    return study


@pytest.mark.parametrize(
    ("studies", "added"),
    [
        ([pretended(0), pretended(0)], [4, 0]),  # at the start
        ([pretended(1, started=4), pretended(0)], [0, 3]),  # three wait, and work on the next one
        ([pretended(1, started=4), pretended(2, started=2), pretended(0)], [0, 1, 0]),
        ([pretended(0, started=4, complete=True), pretended(1, started=1)], [0, 3]),
        ([pretended(4, started=4), pretended(0)], [0, 0]),
        ([pretended(3, started=4), pretended(3, started=3)], [0, 0]),  # the first has work again: none is stopped
    ],
)
def test_processes_without_work_go_to_the_next_study(studies, added, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from studies import fill

    fill(studies, 4)
    assert [study.added for study in studies] == added


PRETENDED_PROBE = """
import json, os, sys
if os.environ.get("ACCELERATE_DYNAMO_MODE"):
    raise SystemExit("no graphs here")
whole = 3.0 if os.environ.get("TORCH_COMPILE_DISABLE") == "1" else 2.0
if sys.argv[3].endswith("-1"):
    whole += 1.0
print(json.dumps({"start_seconds": 1.0, "step_seconds": 0.5, "whole_run_seconds": whole}))
"""


def test_the_mode_that_ends_first_is_taken_and_one_that_fails_is_not(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import probe

    (tmp_path / "probe.py").write_text(PRETENDED_PROBE)
    monkeypatch.setattr(probe, "__file__", str(tmp_path / "probe.py"))
    found = probe.probe(tmp_path / "study.json", tmp_path, processes=2, seconds=0.1, env={})
    assert found["fastest"] == "yes"
    assert (found["no"]["whole_run_seconds"], found["yes"]["whole_run_seconds"]) == (3.5, 2.5)  # of two processes
    assert found["graphs"] == {"error": "no graphs here"}


def test_a_larger_trunk_is_chosen_where_there_is_more_time(tmp_path, monkeypatch):
    """By FLOPs counted here: three seeds of what is chosen fit, and of the next larger one do not."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import design

    data = {"source": "text", "files": ["x.txt"], "tokenizer": {"vocab_size": design.VOCABULARY}}
    peak = 1e15  # a tenth of it is counted on
    sizes, depths = [], set()
    for seconds in (200, 500, 1400, 7200, 72_000):
        chosen = design.choose(data, seconds=seconds, results=tmp_path, peak=peak, cpus=16, rehearse=False)
        trunk = chosen.config.trunk_of(chosen.config.recipes[0], chosen.config.measured_rungs[-1])
        layers = [rung.fields["num_hidden_layers"] for rung in trunk.rungs]
        parts, shares = ([8, 4, 2], [0.2, 0.4, 0.6]) if layers[-1] == 16 else ([4, 2], [0.3, 0.6])
        assert [layers[-1] // fewer for fewer in layers[:-1]] == parts
        assert [rung.until for rung in trunk.rungs] == [*shares, None]
        depths.add(layers[-1])
        assert trunk.growth.method == "stack"
        sizes.append(chosen.reasons["estimates"].index(_estimate(chosen)))
        assert _estimate(chosen)["seconds"] <= seconds
        assert (len(chosen.config.learning_rates.rates) == 3) == (seconds >= design.LONG)
        second = chosen.extensions[0].recipes[1]
        ladder = chosen.extensions[0].ladder_of(second)
        assert (ladder.trunk.moments, ladder.trunk.rewarm, ladder.growth.method) == ("grown", "new", "exact")
        assert [len(config.seeds) for config in (chosen.config, *chosen.extensions)] == [3, 3, design.MOST_SEEDS]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]
    assert {8, 16} <= depths
    assert design.peak_rate(64) == 6e-3
    assert design.peak_rate(256) == 3e-3


def _estimate(chosen):
    wanted = chosen.reasons["chosen"]
    return next(
        entry
        for entry in chosen.reasons["estimates"]
        if (entry["layers"], entry["width"]) == (wanted["layers"], wanted["width"])
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["first.yaml"], "--data: {folder}/first.yaml reads sums.jsonl, which is not among the files given"),
        (["--data", "sums.jsonl", "first.yaml", "first.yaml"], "two studies are called 'first'"),
        (["--data", "sums.jsonl"], "give one study's configuration or more"),
        (["--minutes", "0", "first.yaml"], "--minutes: 0.0 is not a number above 0"),
        (["nowhere.yaml"], "{folder}/nowhere.yaml does not exist"),
    ],
)
def test_a_wrong_command_is_refused_in_one_line(arguments, message, files, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(FOLDER))
    from studies import main

    monkeypatch.chdir(tmp_path)
    found = [str(files / item) if item.endswith((".yaml", ".jsonl")) else item for item in arguments]
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path / "out"), *found])
    assert ended.value.code == 2
    assert message.format(folder=files) in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
