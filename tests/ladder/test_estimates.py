"""What a rung hands on: the estimates on disk and the penalty made of them."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from ladder_fixtures import write_corpus
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from hf_progressive import storage
from hf_progressive.config import DataConfig, FisherConfig, GrowthConfig, PhiConfig, SubspaceConfig, TokenizerConfig
from hf_progressive.data import Corpus, prepare_corpus
from hf_progressive.growth import grow_checkpoint
from hf_progressive.ladder.estimates import estimate_inheritance
from hf_progressive.ladder.rung_penalty import rung_penalty

PHI = PhiConfig(ewc_lambda=0.5, gamma=0.25, fisher=FisherConfig(definition="sequence"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    config = DataConfig(
        source="json",
        files=(str(write_corpus(folder)),),
        validation_fraction=0.1,
        tokenizer=TokenizerConfig(vocab_size=300, training_bytes=50_000),
    )
    return prepare_corpus(config, 32, folder / "data")


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=300, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("parent") / "checkpoint"
    with storage.atomic_folder(folder) as temporary:
        GPT2LMHeadModel(config).save_pretrained(temporary)
    return folder


def test_estimates_that_do_not_fit_into_memory_are_made_in_smaller_batches(
    parent: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phi = dataclasses.replace(PHI, subspace=SubspaceConfig(source="activations"))
    files = ("phi/fisher.safetensors", "phi/subspace.safetensors")
    sizes: list[int] = []
    forward = GPT2LMHeadModel.forward

    def in_little_memory(self: GPT2LMHeadModel, input_ids: torch.Tensor, **arguments: Any) -> Any:
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError
        return forward(self, input_ids=input_ids, **arguments)

    found = []
    for little in (False, True):
        copied = tmp_path / str(little)
        shutil.copytree(parent, copied)
        if little:
            monkeypatch.setattr(GPT2LMHeadModel, "forward", in_little_memory)
        estimate_inheritance(copied, phi, corpus, range(10), flops_per_token=1.0, state=PartialState())
        found.append([load_file(copied / name) for name in files])
    assert sizes[:3] == [8, 4, 2]
    (fisher, bases), (fisher_of_two, bases_of_two) = found
    torch.testing.assert_close(fisher_of_two, fisher, rtol=1e-4, atol=1e-9)
    for name, basis in bases.items():
        torch.testing.assert_close(bases_of_two[name] @ bases_of_two[name].T, basis @ basis.T, rtol=0, atol=1e-3)


def test_the_penalty_is_the_dense_formula_in_the_childs_coordinates(
    parent: Path, corpus: Corpus, tmp_path: Path
) -> None:
    span = range(3, 43)
    costs = estimate_inheritance(parent, PHI, corpus, span, flops_per_token=10.0, state=PartialState())
    assert costs["fisher"]["sequences"] == 40
    assert costs["fisher"]["flops"] > 40 * 32 * 10.0
    grow_checkpoint(parent, tmp_path / "child", {"n_layer": 2, "n_embd": 24, "n_head": 3})
    penalty = rung_penalty(PHI, GrowthConfig(), init=tmp_path / "child", parent=parent)
    assert penalty is not None

    # Ω by the definition: one sequence at a time, squared, per token; then by hand into the wider child.
    model = AutoModelForCausalLM.from_pretrained(parent)
    name = "transformer.h.0.mlp.c_fc.weight"  # (in 16, out 64) in the parent, (in 24, out 96) in the child
    omega, tokens = torch.zeros(16, 64), 0
    for index in span:
        ids = corpus.train[index]["input_ids"][None]
        loss = model(ids, labels=ids).loss * (ids.numel() - 1)
        omega += torch.autograd.grad(loss, model.get_parameter(name))[0] ** 2
        tokens += ids.numel() - 1
    omega /= tokens
    left, values, _ = torch.linalg.svd(model.get_parameter(name).detach().T)  # output side first
    rank = int((values.square().cumsum(0) < 0.95 * values.square().sum()).sum()) + 1
    basis = torch.zeros(96, rank)
    basis[:64] = left[:, :rank]

    child = AutoModelForCausalLM.from_pretrained(tmp_path / "child")
    step = torch.randn(24, 96, generator=torch.Generator().manual_seed(1)) * 0.01
    with torch.no_grad():
        child.get_parameter(name).add_(step)
    ewc = 0.5 * 0.5 * (omega * step[:16, :64] ** 2).sum()
    outside = step.T - basis @ (basis.T @ step.T)
    terms = penalty.terms(child)
    torch.testing.assert_close(terms["ewc"], ewc, rtol=1e-3, atol=0)
    torch.testing.assert_close(terms["subspace"], 0.25 * outside.square().sum(), rtol=1e-3, atol=0)


def test_nothing_is_estimated_where_nothing_is_weighted(parent: Path, corpus: Corpus) -> None:
    none = PhiConfig()
    assert estimate_inheritance(parent, none, corpus, range(4), flops_per_token=1.0, state=PartialState()) == {}
    assert rung_penalty(none, GrowthConfig(), init=parent, parent=parent) is None


def test_a_missing_estimate_is_named(parent: Path, tmp_path: Path) -> None:
    grow_checkpoint(parent, tmp_path / "child", {"n_layer": 2})
    (tmp_path / "bare").mkdir()
    shutil.copy(parent / "config.json", tmp_path / "bare")
    with pytest.raises(FileNotFoundError, match=r"fisher\.safetensors: no such file"):
        rung_penalty(PHI, GrowthConfig(), init=tmp_path / "child", parent=tmp_path / "bare")
