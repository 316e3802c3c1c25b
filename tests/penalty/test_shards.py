"""Φ on a model divided among processes, which threads stand for, against Φ on the whole model."""

import dataclasses
import threading
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed as dist
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_progressive.penalty import InheritancePenalty, specification
from hf_progressive.penalty.shards import ParameterShard, WholeShard


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
        self.image = nn.Conv2d(inputs, outputs, (2, 3))  # (outputs, inputs, 2, 3)
        for number, p in enumerate(self.parameters()):
            p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
            p.grad = torch.ones_like(p)


class Cut(ParameterShard):
    """Whatever lies between two edges."""

    def __init__(self, parameter, edges, processes):
        self.parameter, self.shape, self.group = parameter, tuple(parameter.shape), processes
        self.start, self.length = edges[0], edges[1] - edges[0]
        self.whole = WholeShard(parameter)

    def weights(self):
        return self.whole.weights()[self.start : self.start + self.length]

    def gradient(self):
        return self.whole.gradient()[self.start : self.start + self.length]


def build_penalty(model, rank, **options):
    def random(shape, seed):
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    names = {name: p.shape for name, p in model.named_parameters()}
    outputs = {"conv.weight": model.conv.weight.shape[1], "linear.weight": model.linear.weight.shape[0]}
    outputs["image.weight"] = outputs["linear.weight"]
    bases = {
        name: torch.linalg.qr(random((out, out), 30)).Q[:, : min(rank, out)].clone() for name, out in outputs.items()
    }
    return InheritancePenalty(
        {name: random(shape, 10) for name, shape in names.items()},
        {name: random(shape, 20) for name, shape in names.items()},
        bases,
        ewc_lambda=0.7,
        gamma=0.3,
        **options,
    )


@contextmanager
def divided(cut, processes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(specification, "shard_of", cut)
        patch.setattr(dist, "all_reduce", processes.all_reduce)
        patch.setattr(dist, "all_gather_object", processes.all_gather_object)
        patch.setattr(dist, "get_world_size", lambda group: group.count)
        yield


@settings(max_examples=25)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    rank=st.integers(0, 6),
    cuts=st.lists(st.floats(0, 1), min_size=1, max_size=3).map(sorted),
)
def test_shards_cut_anywhere_add_up_to_the_whole(shape, rank, cuts):
    """Any contiguous shards, empty ones too: what ZeRO and FSDP2 make are cases of it."""
    whole = Pair(*shape)
    expected = build_penalty(whole, rank).add_gradient(whole)
    processes = Processes(len(cuts) + 1)

    def cut(parameter):
        edges = [0, *(round(cut * parameter.numel()) for cut in cuts), parameter.numel()]
        return Cut(parameter, edges[processes.rank.number : processes.rank.number + 2], processes)

    def one_process(number):
        model = Pair(*shape)
        bound = build_penalty(model, rank).bind(model)
        step = bound.add_gradient()
        with pytest.raises(ValueError, match=r"value\(\) needs whole parameters; .* use add_gradient\(\)"):
            bound.value()
        return step, {name: p.grad - 1 for name, p in model.named_parameters()}, bound

    with divided(cut, processes):
        results = processes.run(one_process)

    close = {"rtol": 1e-11, "atol": 1e-11}
    for step, _, _ in results:
        for name in ("ewc", "subspace", "gradient_norm", "task_gradient_norm"):
            torch.testing.assert_close(getattr(step, name), getattr(expected, name), **close)
    for name, parameter in whole.named_parameters():
        summed = sum(gradients[name] for _, gradients, _ in results)
        torch.testing.assert_close(summed, parameter.grad - 1, **close)
    whole_bytes = 2 * sum(p.numel() * p.element_size() for p in whole.parameters())
    restraints = [bound.restraint for *_, b in results for bound in b._parameters.values()]
    bases = sum(r.basis.numel() * 8 for r in restraints if r.basis is not None)
    assert sum(b.held_bytes() for *_, b in results) - bases == whole_bytes


@settings(max_examples=15)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    rank=st.integers(0, 6),
    cuts=st.lists(st.floats(0, 1), min_size=1, max_size=3).map(sorted),
    side=st.sampled_from(["outside", "inside"]),
)
def test_shards_cut_anywhere_take_the_proximal_step_of_the_whole(shape, rank, cuts, side):
    """Of a sum of two anchors, each with γ: products with U follow one another within the step."""

    def total(model):
        options = {"apply": "proximal", "subspace_side": side}
        other = {name: torch.ones_like(p) for name, p in model.named_parameters()}
        first = build_penalty(model, rank, **options)
        return InheritancePenalty.sum([first, dataclasses.replace(first, anchor=other)])

    def stepped(model):
        return total(model).bind(model).proximal_step(torch.optim.SGD(model.parameters(), lr=0.4))

    whole = Pair(*shape)
    expected = stepped(whole)
    processes = Processes(len(cuts) + 1)

    def cut(parameter):
        edges = [0, *(round(cut * parameter.numel()) for cut in cuts), parameter.numel()]
        return Cut(parameter, edges[processes.rank.number : processes.rank.number + 2], processes)

    def one_process(number):
        model = Pair(*shape)
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        return stepped(model), {name: p.detach() - start[name] for name, p in model.named_parameters()}, start

    with divided(cut, processes):
        results = processes.run(one_process)
    close = {"rtol": 1e-11, "atol": 1e-11}
    for step, _, _ in results:
        for name in ("ewc", "subspace", "moved_norm", "distance_norm"):
            torch.testing.assert_close(getattr(step, name), getattr(expected, name), **close)
    for name, parameter in whole.named_parameters():
        summed = results[0][2][name] + sum(moves[name] for _, moves, _ in results)
        torch.testing.assert_close(summed, parameter.detach(), **close)


@pytest.mark.parametrize("change", ["replaced", "moved"])
def test_what_is_bound_follows_no_other_parameters(change):
    model = Pair(2, 2, 2)
    bound = build_penalty(model, 1).bind(model)
    bound.add_gradient()
    if change == "replaced":
        model.conv.weight = nn.Parameter(model.conv.weight.detach().clone())
    else:
        model.conv.to("meta")
    with pytest.raises(ValueError, match=r"conv\.weight was replaced or moved since Φ was bound .*; bind it again"):
        bound.add_gradient()
