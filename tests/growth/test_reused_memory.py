"""Memory that tensors leave to one another: used again when a tensor is written, and not before."""

import time
from pathlib import Path

import pytest
import torch
from growth_checkpoints import WIDER, gpt2, save
from safetensors.torch import load_file

from hf_progressive.growth import grow, grow_checkpoint, grow_model, writer
from hf_progressive.growth.reused_memory import ReusedMemory


def test_a_size_that_was_given_back_is_lent_again_once():
    memory = ReusedMemory(1 << 10)
    first, other = (memory.empty((4, 2), torch.float32) for _ in range(2))
    memory.give_back(first)
    memory.give_back(first)  # which has nothing left to give
    memory.give_back(torch.empty(4, 2))  # which is not from there
    again = memory.empty((16,), torch.bfloat16)
    assert again.data_ptr() == first.data_ptr()
    assert memory.empty((8,), torch.float32).data_ptr() not in (first.data_ptr(), other.data_ptr())


def test_no_more_is_kept_than_allowed():
    memory = ReusedMemory(100)
    tensors = [memory.empty((10,), torch.float64) for _ in range(2)]
    for tensor in tensors:
        memory.give_back(tensor)
    lent = [memory.empty((10,), torch.float64).data_ptr() for _ in range(2)]
    assert lent[0] == tensors[0].data_ptr()
    assert lent[1] != tensors[1].data_ptr()


def test_a_large_tensor_asks_for_huge_pages_and_a_small_one_does_not():
    # Linux says of every stretch of memory what was asked for: "hg" are huge pages.
    memory = ReusedMemory(0)
    large, small = memory.empty((3 << 20,), torch.float16), memory.empty((1 << 18,), torch.float32)
    large.fill_(1.0)
    assert large.sum(dtype=torch.float64) == 3 << 20
    asked = "hg" in _flags_of(large.data_ptr())
    assert asked == Path("/sys/kernel/mm/transparent_hugepage").exists()
    assert "hg" not in _flags_of(small.data_ptr())


def _flags_of(address: int) -> list[str]:
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first:
            low, high = (int(end, 16) for end in first.split("-"))
            inside = low <= address < high
        elif inside and first == "VmFlags:":
            return rest
    raise AssertionError(f"no memory is mapped at {address:#x}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_slow_disk_is_given_what_was_grown_for_it(tmp_path, monkeypatch, dtype):
    parent = gpt2(n_layer=6, vocab_size=20)
    source = save(parent, tmp_path / "parent")
    slow, reused = writer._GrowingFile._write, []

    def write(self, buffer):
        time.sleep(0.002)
        slow(self, buffer)

    def count(self, tensor, give_back=ReusedMemory.give_back):
        reused.append(tensor.data_ptr())
        give_back(self, tensor)

    monkeypatch.setattr(writer, "_IN_FLIGHT_BYTES", 1 << 16)
    monkeypatch.setattr(grow, "_GROWN_BYTES", 1 << 16)
    monkeypatch.setattr(writer._GrowingFile, "_write", write)
    monkeypatch.setattr(ReusedMemory, "give_back", count)
    target = {**WIDER, "n_layer": 9}
    grow_checkpoint(source, tmp_path / "child", target, dtype=dtype, verify=False, progress=False)
    assert len(set(reused)) < 0.8 * len(reused)
    expected = dict(grow_model(parent, target).named_parameters())
    found = load_file(tmp_path / "child" / "model.safetensors")
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name].to(getattr(torch, dtype))), name
