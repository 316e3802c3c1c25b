"""Fisher diagonals and subspaces on disk."""

import pytest
import torch

from hf_progressive.estimation.saved_estimates import (
    FisherRecord,
    SubspaceRecord,
    load_fisher,
    load_subspace,
    save_estimate,
)

FISHER = {"a.weight": torch.rand(3, 2), "a.bias": torch.rand(3)}
RECORD = FisherRecord(kind="true", definition="token", sequences=7, tokens=70, model_hash="ab", data_fingerprint="cd")
SUBSPACE = {"a.weight": torch.eye(3)[:, :2].T.contiguous().T, "b.weight": torch.zeros(4, 0)}
SUBSPACE_RECORD = SubspaceRecord(source="gradients", energy=0.9, sequences=7, tokens=70)


def test_fisher_comes_back(tmp_path):
    save_estimate(tmp_path / "phi" / "fisher.safetensors", FISHER, RECORD)
    tensors, record = load_fisher(tmp_path / "phi" / "fisher.safetensors", expected=FISHER)
    assert record == RECORD
    assert tensors.keys() == FISHER.keys()
    assert all(torch.equal(tensors[name], FISHER[name]) for name in FISHER)
    assert [p.name for p in (tmp_path / "phi").iterdir()] == ["fisher.safetensors"]


def test_subspace_comes_back(tmp_path):
    save_estimate(tmp_path / "s.safetensors", SUBSPACE, SUBSPACE_RECORD)
    tensors, record = load_subspace(tmp_path / "s.safetensors", expected={"a.weight": 3, "b.weight": 4, "c.weight": 5})
    assert record == SUBSPACE_RECORD
    assert all(torch.equal(tensors[name], SUBSPACE[name]) for name in SUBSPACE)


def test_equal_estimates_give_equal_bytes(tmp_path):
    for number in range(20):
        tensors = dict(reversed(FISHER.items())) if number % 2 else FISHER
        save_estimate(tmp_path / f"fisher-{number}", tensors, RECORD)
        save_estimate(tmp_path / f"subspace-{number}", SUBSPACE, SUBSPACE_RECORD)
    assert len({path.read_bytes() for path in tmp_path.glob("fisher-*")}) == 1
    assert len({path.read_bytes() for path in tmp_path.glob("subspace-*")}) == 1


def test_another_models_file_is_refused(tmp_path):
    save_estimate(tmp_path / "f", FISHER, RECORD)
    save_estimate(tmp_path / "s", SUBSPACE, SUBSPACE_RECORD)
    with pytest.raises(ValueError, match=r"1 names the model lacks \(such as \['a.bias'\]\) and lacks 1 .*'b'"):
        load_fisher(tmp_path / "f", expected={"a.weight": FISHER["a.weight"], "b": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"a.weight has shape \(3, 2\), the model's has \(4, 2\)"):
        load_fisher(tmp_path / "f", expected=FISHER | {"a.weight": torch.zeros(4, 2)})
    with pytest.raises(ValueError, match="the basis of a.weight has 3 rows, the weight has 5 outputs"):
        load_subspace(tmp_path / "s", expected={"a.weight": 5, "b.weight": 4})
    with pytest.raises(ValueError, match="holds no FisherRecord"):
        load_fisher(tmp_path / "s")


def test_damage_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="f: no such file"):
        load_fisher(tmp_path / "f")
    save_estimate(tmp_path / "f", FISHER, RECORD)
    content = (tmp_path / "f").read_bytes()
    (tmp_path / "f").write_bytes(content[:-5])
    with pytest.raises(ValueError, match="f: not a sound safetensors file"):
        load_fisher(tmp_path / "f")
