"""Fisher diagonals and subspaces on disk."""

import pytest
import torch
from safetensors.torch import save_file

from hf_progressive.estimation.saved_estimates import (
    FisherRecord,
    SubspaceRecord,
    open_estimate,
    read_record,
    save_estimate,
)

FISHER = {"a.weight": torch.rand(3, 2), "a.bias": torch.rand(3)}
RECORD = FisherRecord(kind="true", definition="token", sequences=7, tokens=70, model_hash="ab", data_fingerprint="cd")
SUBSPACE = {"a.weight": torch.eye(3)[:, :2].T.contiguous().T, "b.weight": torch.zeros(4, 0)}
SUBSPACE_RECORD = SubspaceRecord(source="gradients", energy=0.9, sequences=7, tokens=70)


def test_fisher_comes_back(tmp_path):
    path = tmp_path / "phi" / "fisher.safetensors"
    save_estimate(path, FISHER, RECORD)
    tensors = open_estimate(path, FisherRecord)
    assert read_record(path, FisherRecord) == RECORD
    assert tensors.keys() == FISHER.keys()
    assert all(torch.equal(tensors[name], FISHER[name]) for name in FISHER)
    assert [p.name for p in (tmp_path / "phi").iterdir()] == ["fisher.safetensors"]


def test_subspace_comes_back(tmp_path):
    save_estimate(tmp_path / "s.safetensors", SUBSPACE, SUBSPACE_RECORD)
    tensors = open_estimate(tmp_path / "s.safetensors", SubspaceRecord)
    assert read_record(tmp_path / "s.safetensors", SubspaceRecord) == SUBSPACE_RECORD
    assert tensors.keys() == SUBSPACE.keys()
    assert all(torch.equal(tensors[name], SUBSPACE[name]) for name in SUBSPACE)


def test_equal_estimates_give_equal_bytes(tmp_path):
    for number in range(20):
        tensors = dict(reversed(FISHER.items())) if number % 2 else FISHER
        save_estimate(tmp_path / f"fisher-{number}", tensors, RECORD)
        save_estimate(tmp_path / f"subspace-{number}", SUBSPACE, SUBSPACE_RECORD)
    assert len({path.read_bytes() for path in tmp_path.glob("fisher-*")}) == 1
    assert len({path.read_bytes() for path in tmp_path.glob("subspace-*")}) == 1


def test_a_file_of_another_sort_is_refused(tmp_path):
    save_estimate(tmp_path / "s", SUBSPACE, SUBSPACE_RECORD)
    with pytest.raises(ValueError, match="holds no FisherRecord"):
        open_estimate(tmp_path / "s", FisherRecord)


def test_damage_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="f: no such file"):
        open_estimate(tmp_path / "f", FisherRecord)
    save_estimate(tmp_path / "f", FISHER, RECORD)
    content = (tmp_path / "f").read_bytes()
    (tmp_path / "f").write_bytes(content[:-5])
    with pytest.raises(ValueError, match="f: not a sound safetensors file"):
        open_estimate(tmp_path / "f", FisherRecord)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("[" * 50_000, "is nested too deeply"),
        ("[]", "holds no FisherRecord"),
        ('{"type": "FisherRecord"}', "hf_progressive.kind is missing"),
        ('{"type": "FisherRecord", "knid": "true"}', r"hf_progressive.knid: unknown key; did you mean 'kind'\?"),
        (
            '{"type": "FisherRecord", "kind": 3, "definition": "token", "sequences": 1, "tokens": 1}',
            "hf_progressive.kind: expected text, got 3",
        ),
    ],
)
def test_a_header_that_is_no_record_is_named(tmp_path, header, message):
    path = tmp_path / "fisher.safetensors"
    save_file({"w": torch.ones(2)}, path, metadata={"hf_progressive": header})
    with pytest.raises(ValueError, match=message) as caught:
        open_estimate(path, FisherRecord)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
