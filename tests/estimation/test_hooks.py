"""Gradients at layers' outputs against autograd's, and the model as it was afterwards."""

import pytest
import torch
from torch import nn

from hf_progressive.estimation.hooks import UnfitLayerError, gradient_hooks, kept_gradients, untracked_parameters


class Network(nn.Module):
    """Tokens and positions, a layer that runs twice, and one whose result is thrown away."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(11, 4), nn.Embedding(5, 4)
        self.twice, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1])[None])
        self.unused(x)
        return self.twice(torch.tanh(self.twice(x)))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network().double()


def test_layers_and_gradients_arrive(network):
    ids = torch.randint(11, (3, 5))
    layers = {network.tokens: [], network.positions: [], network.twice: [], network.unused: []}
    with (
        untracked_parameters(network),
        gradient_hooks(layers, lambda module, x, g, options: layers[module].append((x, g)), 3) as passed,
    ):
        torch.autograd.backward(network(ids).square().sum())
    assert {layer: passed.outstanding[layer] for layer in layers} == {
        network.tokens: 0,
        network.positions: 0,
        network.twice: 0,
        network.unused: 1,
    }
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    network(ids).square().sum().backward()  # what the hooks saw explains the gradients autograd gives the weights
    weights = [(x, g) for x, g in layers[network.twice]]
    assert len(weights) == 2
    explained = sum(torch.einsum("bto,bti->oi", g, x) for x, g in weights)
    torch.testing.assert_close(explained, network.twice.weight.grad)
    [(positions, gradient)] = layers[network.positions]
    assert positions.shape == (3, 5)  # once for every sequence
    torch.testing.assert_close(gradient.sum(0), network.positions.weight.grad)


def test_a_layer_without_sequences_is_refused(network):
    with (
        gradient_hooks([network.twice], print, 2),
        pytest.raises(UnfitLayerError, match=r"^the Linear returned the shape \(3, 5, 4\), not"),
    ):
        network(torch.randint(11, (3, 5)))
    with gradient_hooks([network.twice], print, 4), pytest.raises(UnfitLayerError, match=r"shape \(5, 4\), not"):
        network.twice(torch.ones(5, 4, dtype=torch.float64))


def test_everything_is_restored_after_an_error(network):
    network.twice.weight.grad = kept = torch.ones(4, 4, dtype=torch.float64)
    network.positions.weight.requires_grad_(False)
    with kept_gradients(network), untracked_parameters(network):
        assert network.twice.weight.grad is None
        with pytest.raises(IndexError):
            network(torch.tensor([[99]]))  # fails within a layer
    assert network.twice.weight.grad is kept
    assert [n for n, p in network.named_parameters() if not p.requires_grad] == ["positions.weight"]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
