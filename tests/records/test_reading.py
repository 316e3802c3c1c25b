"""Records are read as they were written, and a damaged one is refused in one line that says what and where."""

import json

import pytest

from hf_progressive.records.reading import read_run, read_rung


def test_a_run_is_read_as_it_was_written(run, records):
    written = records()
    read = read_run(run(written))
    assert [rung.name for rung in read.rungs] == ["l5w96", "l6w96", "l6w112"]
    assert (read.name, read.family, read.seed, read.missing) == ("ladder_small", "gpt2", 0, ())
    for rung, record in zip(read.rungs, written, strict=True):
        assert rung.parent == record["parent"]
        assert (rung.layers, rung.width) == (record["config"]["n_layer"], record["config"]["n_embd"])
        assert rung.flops == sum(record["flops"][part] for part in ("train", "fisher", "subspace"))
        assert [point.flops for point in rung.curve] == [point["flops"] for point in record["curve"]]
        for name in ("tokens", "bits_per_byte", "flops_to_match", "saving", "eta", "max_abs_logit_diff"):
            assert getattr(rung, name) == record[name]
    assert read.rungs[1].cold.flops == written[1]["cold"]["flops"]


def test_layers_and_width_are_found_under_the_names_of_other_families(run, records):
    first = records()[0] | {"config": {"num_hidden_layers": 5, "hidden_size": 96}}
    rung = read_run(run([first])).rungs[0]
    assert (rung.layers, rung.width) == (5, 96)


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
        (damaged(lambda r: r["flops"].update(train="many")), r"flops\.train: expected a finite number, got 'many'"),
        (damaged(lambda r: r.update(bits_per_byte=float("nan"))), "bits_per_byte: expected a finite number, got nan"),
        (damaged(lambda r: r.update(index=True)), "index: expected a whole number, got True"),
        (damaged(lambda r: r.update(curve=[])), "curve: expected at least one evaluation, got none"),
        (damaged(lambda r: r["curve"][2].pop("flops")), "curve: flops is missing"),
        (damaged(lambda r: r["curve"].reverse()), "curve: FLOPs fall from"),
        (damaged(lambda r: r["cold"].pop("flops")), "cold: flops is missing"),
        (damaged(lambda r: r.pop("data")), r"data\.source is missing"),
        (damaged(lambda r: r.update(name=None)), "name: expected text, got None"),
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


def test_unknown_keys_are_left_alone(run, records):
    first = records()[0] | {"added_later": {"score": 0.1}}
    folder = run([first])
    assert read_rung(folder / "l5w96" / "final" / "rung.json").name == "l5w96"
