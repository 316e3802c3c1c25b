"""Φ on a convolution's weight, taken as a matrix (out, in·kernel)."""

import pytest
import torch
from torch import nn

from hf_progressive.penalty import InheritancePenalty


class Image(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.line = nn.Conv2d(4, 6, (2, 3), groups=2), nn.Conv1d(3, 5, 4)
        self.double()


@pytest.mark.parametrize("rank", [0, 2, 5])
def test_value_and_gradient_equal_the_dense_formula(rank):
    model = Image()
    anchor = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    fisher = {name: torch.rand_like(p) for name, p in model.named_parameters()}
    matrices = [(n, p) for n, p in model.named_parameters() if p.ndim > 1]
    bases = {n: torch.linalg.qr(torch.randn(len(p), len(p), dtype=p.dtype)).Q[:, :rank] for n, p in matrices}
    expected = sum(0.35 * (fisher[n] * (p - anchor[n]) ** 2).sum() for n, p in model.named_parameters())
    for name, weight in matrices:
        delta = (weight - anchor[name]).reshape(len(weight), -1)  # (out, in·kernel)
        outside = torch.eye(len(weight)).to(weight) - bases[name] @ bases[name].T
        expected = expected + 0.3 * torch.trace(outside @ delta @ delta.T @ outside.T)
    gradients = torch.autograd.grad(expected, list(model.parameters()))

    penalty = InheritancePenalty(anchor, fisher, bases, ewc_lambda=0.7, gamma=0.3)
    torch.testing.assert_close(penalty.value(model), expected)
    step = penalty.add_gradient(model)
    torch.testing.assert_close(step.value, expected.detach())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_weight_laid_out_otherwise_is_refused():
    model = Image().to(memory_format=torch.channels_last)
    penalty = InheritancePenalty({"image.weight": torch.zeros(6, 2, 2, 3)}, ewc_lambda=0.0)
    with pytest.raises(ValueError, match=r"\(6, 2, 2, 3\) is not laid out row by row.*contiguous_format"):
        penalty.bind(model)
