"""The public `load_penalty`: of a rung, of a rung for its child, of a checkpoint; and what it refuses."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from hf_progressive import InheritancePenalty, grow_checkpoint, learn_subspace, load_penalty, plan_growth, storage
from hf_progressive.estimation import FisherRecord, SubspaceRecord, save_estimate
from hf_progressive.penalty import save_penalty

WIDER = {"n_layer": 2, "n_embd": 24, "n_head": 3}


@pytest.fixture(scope="module")
def fisher() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(p.shape, generator=generator) for name, p in tiny_model(0).named_parameters()}


@pytest.fixture(scope="module")
def rung(tmp_path_factory: pytest.TempPathFactory, fisher: dict[str, torch.Tensor]) -> Path:
    folder = tmp_path_factory.mktemp("rung") / "final"
    write_rung(folder, 0, fisher)
    return folder


def tiny_model(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=1, n_head=2, eos_token_id=0))


def write_rung(folder: Path, seed: int, fisher: dict[str, torch.Tensor]) -> None:
    model = tiny_model(seed)
    with storage.atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
    save_estimate(
        folder / "phi/fisher.safetensors",
        fisher,
        FisherRecord(kind="empirical", definition="token", sequences=1, tokens=8),
    )
    save_estimate(folder / "phi/subspace.safetensors", learn_subspace(model), SubspaceRecord(source="weights"))


def moved(folder: Path) -> GPT2LMHeadModel:
    """The folder's model, every weight moved a little."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return model


def test_a_rung_alone_is_held_where_it_stands(rung: Path, fisher: dict[str, torch.Tensor]) -> None:
    model, still = moved(rung), tiny_model(0)
    expected = sum(
        (fisher[name].double() * (p - q).double() ** 2).sum()
        for (name, p), q in zip(model.named_parameters(), still.parameters(), strict=True)
    )
    penalty = load_penalty(rung, ewc_lambda=3.0)
    assert penalty.value(model).item() == pytest.approx(1.5 * expected.item(), rel=1e-5)
    assert load_penalty(rung, gamma=1.0).value(still).item() == 0.0


def test_a_childs_penalty_is_in_its_own_coordinates(
    rung: Path, fisher: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    grow_checkpoint(rung, tmp_path / "child", WIDER, vocab_multiple=8, depth_position="spread")
    plan = plan_growth(AutoConfig.from_pretrained(rung), WIDER, vocab_multiple=8, depth_position="spread")
    anchor = AutoModelForCausalLM.from_pretrained(tmp_path / "child")
    by_hand = InheritancePenalty(
        {name: parameter.detach().clone() for name, parameter in anchor.named_parameters()},
        plan.map_diagonal(fisher),
        plan.map_subspace(learn_subspace(tiny_model(0))),
        ewc_lambda=0.5,
        gamma=0.25,
    )
    loaded = load_penalty(rung, child=tmp_path / "child", ewc_lambda=0.5, gamma=0.25)
    model = moved(tmp_path / "child")
    for name, value in by_hand.terms(model).items():
        torch.testing.assert_close(loaded.terms(model)[name], value, rtol=1e-6, atol=0)
    # Ω and U are read anew each time: where the model is divided, no process holds them whole.
    for kind in ("fisher", "subspace"):
        lazy = loaded.tensors[kind]
        assert all(lazy[name] is not lazy[name] for name in lazy)
        assert lazy.keys() == by_hand.tensors[kind].keys()


def test_a_checkpoints_penalty_comes_back_with_its_own_weights(rung: Path, tmp_path: Path) -> None:
    save_penalty(load_penalty(rung, ewc_lambda=3.0), tmp_path / "checkpoint-5/phi")
    for folder in (tmp_path / "checkpoint-5", tmp_path / "checkpoint-5/phi"):
        assert load_penalty(folder).ewc_lambda == 3.0
        with pytest.raises(ValueError, match="holds a whole penalty; leave out child, ewc_lambda and gamma"):
            load_penalty(folder, ewc_lambda=1.0)


def test_what_does_not_belong_together_is_refused(rung: Path, fisher: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a rung stores what Φ is made of, not its weights; give ewc_lambda or gamma"):
        load_penalty(rung)
    shutil.copytree(rung, tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-5/trainer_state.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"checkpoint-5: is a checkpoint without a penalty, of a training without one"
    ):
        load_penalty(tmp_path / "checkpoint-5")
    grow_checkpoint(rung, tmp_path / "child", WIDER)
    write_rung(tmp_path / "other", 7, fisher)
    with pytest.raises(ValueError, match=r"was not grown from .*other; its parent had another model\.safetensors"):
        load_penalty(tmp_path / "other", child=tmp_path / "child", ewc_lambda=1.0)
    grow_checkpoint(rung, tmp_path / "fresh", WIDER, method="random")
    with pytest.raises(ValueError, match=r"fresh: was grown by 'random' and inherits nothing that Φ could hold; grow"):
        load_penalty(rung, child=tmp_path / "fresh", ewc_lambda=1.0)
    grow_checkpoint(rung, tmp_path / "saved", WIDER)
    AutoModelForCausalLM.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"saved.*; Φ is anchored where the child starts, so grow it again, and save"):
        load_penalty(rung, child=tmp_path / "saved", ewc_lambda=1.0)
    (tmp_path / "child/rung.json").write_text("{}")
    with pytest.raises(ValueError, match=r"child: is trained already; Φ is anchored where the child starts"):
        load_penalty(rung, child=tmp_path / "child", ewc_lambda=1.0)
    shutil.copytree(rung, tmp_path / "bare", ignore=shutil.ignore_patterns("phi"))
    with pytest.raises(FileNotFoundError, match=r"bare: stores no Fisher .* give fisher='ones' for L2-SP, or"):
        load_penalty(tmp_path / "bare", ewc_lambda=1.0)
    with pytest.raises(FileNotFoundError, match=r"bare: stores no subspaces .* those of learn_subspace"):
        load_penalty(tmp_path / "bare", gamma=1.0)
    with pytest.raises(ValueError, match="fisher is 'one'; give 'estimated' for the rung's own, or 'ones' for L2-SP"):
        load_penalty(rung, ewc_lambda=1.0, fisher="one")
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder, and no name on the Hub"):
        load_penalty(tmp_path / "nowhere", ewc_lambda=1.0)
    with pytest.raises(FileNotFoundError, match="^nowhere: no such folder, and no name on the Hub"):
        load_penalty("nowhere", ewc_lambda=1.0)
    with pytest.raises(FileNotFoundError, match=r"in the cache.* and there is no folder out/checkpoint-5 here$"):
        load_penalty("out/checkpoint-5")
    with pytest.raises(FileNotFoundError, match=r"phi: holds neither config\.json nor penalty\.json; give a rung's"):
        load_penalty(rung / "phi", ewc_lambda=1.0)
    with pytest.raises(ValueError, match=r"a local folder has no revision 'main'"):
        load_penalty(rung, ewc_lambda=1.0, revision="main")


def test_l2_sp_of_a_child_restrains_what_was_inherited_and_needs_no_estimate(rung: Path, tmp_path: Path) -> None:
    grow_checkpoint(rung, tmp_path / "child", WIDER)
    shutil.copytree(rung, tmp_path / "bare", ignore=shutil.ignore_patterns("phi"))
    plan = plan_growth(AutoConfig.from_pretrained(rung), WIDER)
    model, anchor = moved(tmp_path / "child"), AutoModelForCausalLM.from_pretrained(tmp_path / "child")
    distance = sum(
        ((p.double() - q.double()) ** 2)[plan.inherited_mask(name)].sum().item()
        for (name, p), q in zip(model.named_parameters(), anchor.parameters(), strict=True)
    )
    assert (
        0 < distance < sum(((p - q) ** 2).sum() for p, q in zip(model.parameters(), anchor.parameters(), strict=True))
    )
    for apply in ("gradient", "proximal"):  # the mean of what is inherited is 1
        penalty = load_penalty(tmp_path / "bare", child=tmp_path / "child", ewc_lambda=3.0, fisher="ones", apply=apply)
        assert penalty.apply == apply
        assert penalty.value(model).item() == pytest.approx(1.5 * distance, rel=1e-5)


def test_the_side_and_the_way_go_into_the_penalty(rung: Path) -> None:
    penalty = load_penalty(rung, gamma=1.0, subspace_side="inside", apply="proximal")
    assert (penalty.subspace_side, penalty.apply) == ("inside", "proximal")
    model, still = moved(rung), tiny_model(0)
    name = "transformer.h.0.mlp.c_fc.weight"
    bases = learn_subspace(still)
    expected = sum(
        ((dict(model.named_parameters())[n] - dict(still.named_parameters())[n]) @ basis).square().sum()
        for n, basis in bases.items()
    )
    assert name in bases
    assert penalty.value(model).item() == pytest.approx(expected.item(), rel=1e-5)
