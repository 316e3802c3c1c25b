"""Fisher diagonals and subspaces of two processes against those of one that reads all the sequences."""

import functools
import os

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from hf_progressive.estimation.fisher import estimate_fisher
from hf_progressive.estimation.saved_estimates import FisherRecord, open_estimate, read_record, save_estimate
from hf_progressive.estimation.subspace import learn_subspace

WORLD = 2
VOCABULARY = 67  # odd, so that the processes hold unequal pieces
CONFIGS = {
    "gpt2": GPT2Config(n_layer=2, n_embd=20, n_head=2, n_positions=16, vocab_size=VOCABULARY),
    "llama": LlamaConfig(
        num_hidden_layers=2,
        hidden_size=20,
        intermediate_size=28,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
    ),
}
RECORD = FisherRecord(kind="empirical", definition="sequence", sequences=6, tokens=66)


fisher_of = functools.partial(estimate_fisher, definition="sequence")  # nothing random in it


def build(name):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name]).double()


def all_sequences():
    return torch.randint(VOCABULARY, (6, 12), generator=torch.Generator().manual_seed(1))


def own_batches(rank):
    """Four sequences for one process, two for the other, in as many batches."""
    return all_sequences()[:4].split(2) if rank == 0 else all_sequences()[4:].split(1)


def divide(model):
    mesh = init_device_mesh("cpu", (WORLD,))
    layers = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def in_two_processes(work, folder):
    """Each forked from this one, which has imported everything."""
    multiprocessing.start_processes(work, (str(folder),), nprocs=WORLD, start_method="fork")


def estimate_in_process(rank, folder):
    """What each process does; the first leaves what the tests read."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    results = {}
    for name in CONFIGS:
        whole = build(name)
        results[name, "reduced"] = fisher_of(whole, own_batches(rank), reduce=True)
        for source in ("gradients", "activations"):
            results[name, source] = learn_subspace(whole, own_batches(rank), source=source, rank=3, reduce=True)
        results[name, "alone"] = fisher_of(whole, [all_sequences()])

        model = divide(build(name))
        model(input_ids=all_sequences(), labels=all_sequences()).loss.backward()  # it has trained before
        before = {n: p.grad.full_tensor() for n, p in model.named_parameters()}
        divided = fisher_of(model, own_batches(rank))
        assert all(isinstance(value, DTensor) for value in divided.values())
        rows = {n: len(value.to_local()) for n, value in divided.items()}
        assert all(rows[n] <= -(-len(value) // WORLD) for n, value in divided.items())
        assert all(torch.equal(p.grad.full_tensor(), before[n]) for n, p in model.named_parameters())
        save_estimate(f"{folder}/{name}.safetensors", divided, RECORD)
        normalized = fisher_of(model, own_batches(rank), normalize="mean")
        results[name, "normalized"] = {n: value.full_tensor() for n, value in normalized.items()}
        results[name, "weights"] = learn_subspace(model, rank=3)
        with pytest.raises(ValueError, match="divided among processes"):
            fisher_of(model, own_batches(rank), batched=False)
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    dist.destroy_process_group()


ZERO = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


def estimate_under_zero(rank, folder):
    """The same with DeepSpeed ZeRO-3, in float32, which is what it keeps weights in."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(rank), "LOCAL_SIZE": str(WORLD)}
    import deepspeed
    import engine_works

    engine_works.let_deepspeed_compile_nothing()
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    deepspeed.init_distributed("gloo")
    results = {}
    for name in CONFIGS:
        model = build(name).float()
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0), config=ZERO
        )
        divided = fisher_of(engine.module, own_batches(rank))
        assert all(len(value.to_local()) <= -(-len(value) // WORLD) for value in divided.values())
        save_estimate(f"{folder}/{name}.safetensors", divided, RECORD)
        for source in ("weights", "gradients"):
            results[name, source] = learn_subspace(
                engine.module, own_batches(rank), source=source, rank=3, reduce=True
            )
        own = all_sequences()[rank::WORLD]
        engine.backward(engine(input_ids=own, labels=own).loss)  # it still trains
        engine.step()
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_zero_3_estimates_what_one_process_does(tmp_path):
    pytest.importorskip("deepspeed")
    in_two_processes(estimate_under_zero, tmp_path)
    results = torch.load(tmp_path / "results.pt")
    for name in CONFIGS:
        model = build(name).float()
        expected = fisher_of(model, [all_sequences()])
        divided = open_estimate(tmp_path / f"{name}.safetensors", FisherRecord)
        assert divided.keys() == dict(model.named_parameters()).keys()
        assert_same({n: divided[n] for n in expected}, expected, rtol=1e-4)
        for source in ("weights", "gradients"):
            learned = learn_subspace(model, [all_sequences()], source=source, rank=3)
            projectors = ({n: u @ u.T for n, u in bases.items()} for bases in (results[name, source], learned))
            assert_same(*projectors, rtol=1e-3)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    in_two_processes(estimate_in_process, folder)
    return folder, torch.load(folder / "results.pt")


def assert_same(actual, expected, rtol=1e-9):
    assert list(actual) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=rtol, atol=rtol * float(value.abs().max()), msg=name)


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_estimate_what_one_does(name, outcome):
    folder, results = outcome
    model = build(name)
    expected = fisher_of(model, [all_sequences()])
    assert_same(results[name, "reduced"], expected)
    assert_same(results[name, "alone"], expected)  # reduced only if asked
    divided = open_estimate(folder / f"{name}.safetensors", FisherRecord)
    assert divided.keys() == dict(model.named_parameters()).keys()
    assert_same({n: divided[n] for n in expected}, expected)
    assert read_record(folder / f"{name}.safetensors", FisherRecord) == RECORD
    assert_same(results[name, "normalized"], fisher_of(model, [all_sequences()], normalize="mean"))


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_learn_what_one_does(name, outcome):
    _, results = outcome
    for source in ("weights", "gradients", "activations"):
        expected = learn_subspace(build(name), [all_sequences()], source=source, rank=3)
        projectors = (
            {n: basis @ basis.T for n, basis in bases.items()} for bases in (results[name, source], expected)
        )
        assert_same(*projectors)
