"""Φ on a model divided among processes, which threads stand for, against Φ on the whole model."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed as dist
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_progressive.penalty import InheritancePenalty
from hf_progressive.penalty import penalty as penalty_module
from hf_progressive.penalty.shards import HeldPiece


class Processes:
    """Collectives among threads."""

    def __init__(self, count):
        self.count = count
        self.barrier = threading.Barrier(count)
        self.given = [None] * count
        self.rank = threading.local()

    def exchange(self, value):
        self.given[self.rank.number] = value
        self.barrier.wait(timeout=30)
        everyones = list(self.given)
        self.barrier.wait(timeout=30)
        return everyones

    def all_reduce(self, tensor, group):
        assert group is self
        tensor.copy_(torch.stack(self.exchange(tensor.clone())).sum(0))

    def all_gather_object(self, everyones, value, group):
        everyones[:] = self.exchange(value)

    def run(self, function):
        results, failures = [None] * self.count, []

        def body(number):
            self.rank.number = number
            try:
                results[number] = function(number)
            except BaseException as failure:
                failures.append(failure)
                self.barrier.abort()

        threads = [threading.Thread(target=body, args=(number,)) for number in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return results


class Pair(nn.Module):
    """Outputs along dimension 0, and along dimension 1."""

    def __init__(self, inputs, hidden, outputs):
        super().__init__()
        self.conv = Conv1D(hidden, inputs)  # (inputs, hidden)
        self.linear = nn.Linear(hidden, outputs)  # (outputs, hidden)
        for number, p in enumerate(self.parameters()):
            p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
            p.grad = torch.ones_like(p)


def build_penalty(model, rank):
    def random(shape, seed):
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    names = {name: p.shape for name, p in model.named_parameters()}
    outputs = {"conv.weight": model.conv.weight.shape[1], "linear.weight": model.linear.weight.shape[0]}
    bases = {
        name: torch.linalg.qr(random((out, out), 30)).Q[:, : min(rank, out)].clone() for name, out in outputs.items()
    }
    return InheritancePenalty(
        {name: random(shape, 10) for name, shape in names.items()},
        {name: random(shape, 20) for name, shape in names.items()},
        bases,
        ewc_lambda=0.7,
        gamma=0.3,
    )


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    rank=st.integers(0, 6),
    cuts=st.lists(st.floats(0, 1), min_size=1, max_size=3).map(sorted),
)
def test_pieces_cut_anywhere_add_up_to_the_whole(shape, rank, cuts):
    """Any contiguous pieces, empty ones too: what ZeRO and FSDP2 make are cases of it."""
    whole = Pair(*shape)
    expected = build_penalty(whole, rank).add_gradient(whole)
    processes = Processes(len(cuts) + 1)

    def piece_of(parameter):
        piece = HeldPiece(parameter)
        edges = [0, *(round(cut * parameter.numel()) for cut in cuts), parameter.numel()]
        piece.start = edges[processes.rank.number]
        piece.length = edges[processes.rank.number + 1] - piece.start
        piece.group = processes
        weights, gradient = parameter.detach().view(-1), parameter.grad.view(-1)
        piece.weights = lambda: weights[piece.start : piece.start + piece.length]
        piece.gradient = lambda: gradient[piece.start : piece.start + piece.length]
        return piece

    def one_process(number):
        model = Pair(*shape)
        penalty = build_penalty(model, rank)
        step = penalty.add_gradient(model)
        return step, {name: p.grad - 1 for name, p in model.named_parameters()}, penalty

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(penalty_module, "held_piece", piece_of)
        patch.setattr(dist, "all_reduce", processes.all_reduce)
        patch.setattr(dist, "all_gather_object", processes.all_gather_object)
        patch.setattr(dist, "get_world_size", lambda group: group.count)
        results = processes.run(one_process)

    close = {"rtol": 1e-11, "atol": 1e-11}
    for step, _, _ in results:
        for name in ("ewc", "subspace", "gradient_norm", "task_gradient_norm"):
            torch.testing.assert_close(getattr(step, name), getattr(expected, name), **close)
    for name, parameter in whole.named_parameters():
        summed = sum(gradients[name] for _, gradients, _ in results)
        torch.testing.assert_close(summed, parameter.grad - 1, **close)
    whole_bytes = 2 * sum(p.numel() * p.element_size() for p in whole.parameters())
    bases = [sum(r.basis.numel() * 8 for r in p._restraints.values() if r.basis is not None) for *_, p in results]
    assert sum(p.held_bytes() for *_, p in results) - sum(bases) == whole_bytes
    with pytest.raises(ValueError, match="divided among processes; take the mappings before"):
        results[0][2].mappings()


def test_a_divided_model_has_no_value_to_differentiate(monkeypatch):
    model = Pair(2, 2, 2)
    penalty = build_penalty(model, 1)
    penalty.bind(model)
    monkeypatch.setattr(HeldPiece, "is_whole", False)
    with pytest.raises(ValueError, match=r"value\(\) needs whole parameters; .* use add_gradient\(\)"):
        penalty.value(model)
