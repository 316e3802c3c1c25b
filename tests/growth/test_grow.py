"""Growth end to end: the stock class loads the result and computes what the parent computes."""

import copy

import torch
from growth_checkpoints import gpt2, save
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from hf_progressive.growth import GrowthReport, grow_checkpoint, grow_model
from hf_progressive.storage import check_manifest

WIDER = {"n_embd": 40, "n_head": 5, "n_layer": 3}


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


def random_tokens(vocabulary=96, shape=(2, 32)):
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(3))


def test_the_stock_class_loads_a_child_that_computes_the_parents_logits(parent, tmp_path):
    report = grow_checkpoint(parent, tmp_path / "child", WIDER)

    mother, child = (GPT2LMHeadModel.from_pretrained(f, dtype=torch.float64) for f in (parent, tmp_path / "child"))
    tokens = random_tokens()
    expected = logits(mother, tokens)
    assert (logits(child, tokens) - expected).abs().max() < 1e-6 * expected.abs().max()  # weights in float32
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path / "child"), GPT2LMHeadModel)

    assert isinstance(report, GrowthReport)
    assert report.preserves_function
    assert report.verification.preserved
    assert report.parameters_source == mother.num_parameters()
    assert report.parameters_target == child.num_parameters()
    check_manifest(tmp_path / "child")


def test_growth_in_float64_is_exact_to_rounding(tmp_path):
    mother = gpt2(torch.float64)
    save(mother, tmp_path / "parent")
    report = grow_checkpoint(tmp_path / "parent", tmp_path / "child", WIDER)
    assert report.verification.dtype == "float64"
    child = GPT2LMHeadModel.from_pretrained(tmp_path / "child")
    assert child.dtype == torch.float64
    expected = logits(mother, random_tokens())
    assert (logits(child, random_tokens()) - expected).abs().max() < 1e-12 * expected.abs().max()


def test_a_model_grows_in_memory_into_what_is_written_to_disk(parent, tmp_path):
    mother = gpt2()
    mother.train()
    before = copy.deepcopy(mother.state_dict())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    child = grow_model(mother, WIDER, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert child.training
    assert type(child) is GPT2LMHeadModel
    assert child.config.n_embd == 40
    assert mother.config.n_embd == 24

    grow_checkpoint(parent, tmp_path / "child", WIDER, seed=7, verify=False)
    stored = GPT2LMHeadModel.from_pretrained(tmp_path / "child").state_dict()
    assert child.state_dict().keys() == stored.keys()
    assert all(torch.equal(child.state_dict()[name], tensor) for name, tensor in stored.items())

    with torch.no_grad():  # the child owns its memory
        for parameter in child.parameters():
            parameter.zero_()
    assert all(torch.equal(mother.state_dict()[name], tensor) for name, tensor in before.items())
