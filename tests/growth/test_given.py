"""What is no source, output, model, seed or list of tokens is refused in one line, and nothing is written."""

import re

import pytest
import torch
from growth_checkpoints import WIDER, contents, gpt2

from hf_progressive.growth import grow_checkpoint, grow_model

WRONG = {
    "no source": ({"source": None}, "source is a NoneType; give a folder or a Hub id"),
    "a variable that is not set": ({"source": ""}, "source is empty; give a folder or a Hub id"),
    "no output": ({"output": None}, "output is a NoneType; give the folder to create"),
    "an output that is not set": ({"output": ""}, "output is empty; give the folder to create"),
    "an output whose name is no text": (
        {"output": "caf\udce9"},
        "the name is no UTF-8 text, and no record can hold it",
    ),
    "an optimizer in memory": ({"optimizer": torch.optim.SGD([torch.zeros(1)])}, "optimizer is an SGD; give the path"),
    "a seed that is none": ({"seed": None}, "seed is None; give a whole number"),
    "a seed that is a text": ({"seed": "1"}, "seed is '1'; give a whole number"),
    "no method": ({"method": None}, "method is a NoneType; give a method's name"),
    "a key of a target": ({"target": {3: 4}}, "the target names 3; give names of the config's fields"),
    "no shard size": ({"max_shard_size": None}, "max_shard_size: None is no size; give one such as '5GB'"),
    "a text that is none": ({"text": 3}, "text is an int; give the text itself"),
    "low logits that are a text": ({"low_logits": "3", "text": "a"}, "low_logits='3': expected a number > 0, in nat"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_of_another_kind_is_refused_in_one_line(parent, tmp_path, monkeypatch, case):
    changes, said = WRONG[case]
    monkeypatch.chdir(tmp_path)
    given = {"source": parent, "output": "child", "target": WIDER | {"vocab_size": 100}, "progress": False} | changes
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        grow_checkpoint(**given)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (None, "model is a NoneType; give a causal language model of Transformers"),
        (torch.nn.Linear(2, 2), "model is a Linear; give a causal language model of Transformers"),
        ("gpt2", "gpt2: grow_model takes a model in memory"),
    ],
)
def test_what_is_no_model_is_refused(model, said):
    with pytest.raises(ValueError, match=said):
        grow_model(model, WIDER)
    with pytest.raises(ValueError, match="seed is 'a'; give a whole number"):
        grow_model(gpt2(), WIDER, seed="a")


@pytest.mark.parametrize("output", [".", "..", "sub/.."])
def test_the_folder_that_one_stands_in_is_no_name_of_an_output(parent, tmp_path, monkeypatch, output):
    grow_checkpoint(parent, tmp_path / "here" / "sub", {"n_layer": 3}, verify=False)
    monkeypatch.chdir(tmp_path / "here" / "sub" if output == "." else tmp_path / "here")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=rf"{re.escape(output)}: is no name of a new folder; give one, such as"):
        grow_checkpoint(parent, output, {"n_layer": 3}, verify=False, overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (
            ["checkpoints/checkpoint-34", "cold/final", "cold/init", "final", "init"],
            "final, init, cold/final, checkpoints/checkpoint-34 and 1 more",
        ),
        (
            [f"checkpoint-{step}" for step in (50, 100, 150, 900, 1000)],
            "checkpoint-1000, checkpoint-900, checkpoint-150, checkpoint-100 and 1 more",
        ),
        (["a/init", "a/final", "b/final"], "a/final, b/final, a/init"),
    ],
    ids=["a rung", "checkpoints", "a run"],
)
def test_of_a_folder_of_models_the_likely_ones_are_named_first(tmp_path, monkeypatch, folders, said):
    monkeypatch.chdir(tmp_path)
    for folder in folders:
        gpt2().config.save_pretrained(tmp_path / "out" / folder)
    with pytest.raises(FileNotFoundError) as raised:
        grow_checkpoint("out", "child", WIDER)
    assert str(raised.value).replace("out/", "") == f"config.json: no such file; in it are {said}"
