"""Φ on LoRA's products where processes share the work: DDP, and FSDP2's shards, as one process."""

import pytest
import torch
from test_last_batch import in_processes
from test_lora import LAMBDA, adapted, fisher_of, llama, lora
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hf_progressive.penalty import LoraPenalty

pytest.importorskip("peft")


def gradients(model, sharded=False):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    if sharded:
        for layer in model.base_model.model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    step = LoraPenalty(fisher_of(llama()), ewc_lambda=LAMBDA).bind(model).add_gradient()
    found = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    whole = {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in found.items()}
    figures = [float(each) for each in (step.ewc, step.gradient_norm, step.task_gradient_norm)]
    return {name: gradient.tolist() for name, gradient in whole.items()}, figures


def build():
    return adapted(llama(), lora("q_proj", "down_proj"))  # r = 3: two processes hold unequal rows of A


def test_shards_of_two_processes_get_what_one_process_gets():
    alone, figures = gradients(build())
    divided, their_figures = in_processes(2, lambda: gradients(build(), sharded=True))
    assert divided.keys() == alone.keys()
    for name, gradient in alone.items():
        torch.testing.assert_close(torch.tensor(divided[name]), torch.tensor(gradient), rtol=1e-10, atol=1e-12)
    assert their_figures == pytest.approx(figures, rel=1e-10)
