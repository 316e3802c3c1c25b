"""Records are read as they were written, and a damaged one is refused in one line that says what and where."""

import json
import re

import pytest

from hf_progressive import cli
from hf_progressive.config.renamed import RENAMED
from hf_progressive.records.ladder import read_run
from hf_progressive.records.rung import RungRecord


def test_a_run_is_read_as_it_was_written(run, records):
    written = records()
    read = read_run(run(written))
    assert [rung.name for rung in read.rungs] == ["l5w96", "l6w96", "l6w112"]
    assert (read.ladder.name, read.ladder.family, read.ladder.seed, read.missing) == ("ladder_small", "gpt2", 0, ())
    for rung, record in zip(read.rungs, written, strict=True):
        assert rung.parent == record["parent"]
        assert (rung.layers, rung.width) == (record["config"]["n_layer"], record["config"]["n_embd"])
        assert rung.flops.spent == sum(record["flops"][part] for part in ("train", "fisher", "subspace"))
        assert [point.flops for point in rung.curve] == [point["flops"] for point in record["curve"]]
        for name in ("tokens", "bits_per_byte", "flops_to_match", "saving", "eta", "max_abs_logit_diff"):
            assert getattr(rung, name) == record[name]
    assert read.rungs[1].cold.flops == written[1]["cold"]["flops"]


def test_layers_and_width_are_found_under_the_names_of_other_families(run, records):
    first = records()[0] | {"config": {"num_hidden_layers": 5, "hidden_size": 96}}
    rung = read_run(run([first])).rungs[0]
    assert (rung.layers, rung.width) == (5, 96)


def test_the_settings_of_an_older_run_are_read_under_the_names_that_they_have_now(run, records):
    old = {new: old for old, new in RENAMED.items()}["decay_fraction"]
    read = read_run(run(records(), config={"training": {old: 0.25}}))
    assert read.ladder.config["training"] == {"decay_fraction": 0.25}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"training": 3}, r"ladder\.json: config\.training: expected a mapping"),
        ({"training": {"learning_rate": "4e-3"}}, r"config\.training\.learning_rate: "),
        ({"schedule": "trunk", "rungs": ["d11"]}, r"config\.rungs\.0: expected a mapping"),
        ({"rungs": [{"name": "a", "until": "half"}]}, r"config\.rungs\.0\.until: "),
        ({"cold": 5}, r"config\.cold: "),
        ({"growth": None}, r"config\.growth: "),
        ({"data": []}, r"config\.data: expected a mapping"),
    ],
)
def test_a_damaged_configuration_ends_in_one_line(run, records, capsys, config, message):
    folder = run(records(), config=config)
    with pytest.raises(ValueError, match=message):
        read_run(folder)
    assert cli.main(["report", str(folder)]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert "Traceback" not in said


def test_a_key_that_stands_twice_is_refused(run, records):
    folder = run(records())
    text = (folder / "ladder.json").read_text()
    (folder / "ladder.json").write_text(text.replace('"seed": 0', '"seed": 1, "seed": 0', 1))
    with pytest.raises(ValueError, match=r"ladder\.json: an object has the key 'seed' twice"):
        read_run(folder)


@pytest.mark.parametrize(("asked", "pending"), [("all", ("l6w96",)), (["l6w112"], ()), ("none", ())])
def test_an_unfinished_run_knows_what_it_lacks(run, records, asked, pending):
    read = read_run(run(records(cold=False)[:2], config={"cold": asked}))
    assert read.missing == ("l6w112",)
    assert read.pending_baselines == pending


def damaged(change):
    def apply(record):
        change(record)
        return json.dumps(record)

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda record: json.dumps(record)[:200], "not valid JSON"),
        (lambda record: "[]", "holds a JSON list, expected an object"),
        (damaged(lambda r: r.update(format=2)), "format: 2 is not 1, which this version reads; update"),
        (damaged(lambda r: r["flops"].pop("train")), r"flops\.train is missing"),
        (damaged(lambda r: r["flops"].update(train="many")), r"flops\.train: expected a number, got 'many'"),
        (damaged(lambda r: r.update(bits_per_byte=float("nan"))), "bits_per_byte: nan is not a finite number"),
        (damaged(lambda r: r.update(index=True)), "index: expected a whole number, got True"),
        (damaged(lambda r: r.update(curve=[])), "curve: it has no points"),
        (damaged(lambda r: r["curve"][2].pop("flops")), r"curve\.2\.flops is missing"),
        (damaged(lambda r: r["curve"].reverse()), "curve: FLOPs fall from"),
        (damaged(lambda r: r["cold"].pop("flops")), r"cold\.flops is missing"),
        (damaged(lambda r: r["cold"].update(flops=0)), r"cold\.flops: a baseline trains for more than 0"),
        (damaged(lambda r: r.pop("data")), ": data is missing"),
        (damaged(lambda r: r.update(name=None)), "name: expected text, got None"),
        (damaged(lambda r: r.update(tokens=-1)), "tokens: expected 0 or more, got -1"),
        (damaged(lambda r: r.update(eta="0.5")), "eta: expected a number, got '0.5'"),
        (damaged(lambda r: r.update(training_log=[{"loss": "low"}])), r"training_log\.0\.loss: expected a number"),
        (damaged(lambda r: r["data"].update(later=float("inf"))), r"data\.later: inf is not a finite number"),
        (damaged(lambda r: r.pop("format")), "format is missing"),
        (lambda record: '{"format": 1, "name": ' + "[" * 5000 + "]" * 5000 + "}", "is nested too deeply"),
    ],
)
def test_a_damaged_record_is_refused_in_one_line(run, records, damage, message):
    folder = run(records()[:2])
    path = folder / "l6w96" / "final" / "rung.json"
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=message) as caught:
        read_run(folder)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_ladder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no ladder\.json; give a folder that"):
        read_run(tmp_path)


def test_unknown_keys_are_left_alone_and_kept(run, records):
    first = records()[0] | {"added_later": {"score": 0.1}}
    folder = run([first])
    assert RungRecord.read(folder / "l5w96" / "final" / "rung.json").to_dict()["added_later"] == {"score": 0.1}
