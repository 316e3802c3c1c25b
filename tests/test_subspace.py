"""Subspaces against dense eigendecompositions."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_progressive.phi.subspace import learn_subspace


def projector(basis):
    return basis @ basis.T


def low_rank(out, inputs, rank, seed=0):
    generator = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(out, rank, dtype=torch.float64, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(inputs, rank, dtype=torch.float64, generator=generator))
    return left, (left * torch.arange(rank, 0, -1)) @ right.T


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_weights_output_side(kind):
    left, matrix = low_rank(out=12, inputs=12, rank=4)  # square: only the orientation tells the sides apart
    layer = nn.Linear(12, 12, dtype=torch.float64) if kind == "linear" else Conv1D(12, 12).double()
    with torch.no_grad():
        layer.weight.copy_(matrix if kind == "linear" else matrix.T)
    basis = learn_subspace(nn.Sequential(layer), rank=4)["0.weight"]
    torch.testing.assert_close(projector(basis), projector(left))
