"""Stored blocks: what the file holds, from any process, and again from the start past the end."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hf_progressive.data import BlockRange, TokenBlocks


@pytest.fixture(params=["uint16", "uint32"])
def blocks(tmp_path, request):
    np.arange(1000, 1046).astype(f"<{np.dtype(request.param).str[1:]}").tofile(tmp_path / "tokens.bin")
    return TokenBlocks(tmp_path / "tokens.bin", dtype=request.param, context=8)


def test_blocks_are_consecutive_and_the_tail_is_dropped(blocks):
    assert len(blocks) == 5
    assert torch.cat([blocks[i]["input_ids"] for i in range(5)]).tolist() == list(range(1000, 1040))
    with pytest.raises(IndexError, match="block 5 of 5"):
        blocks[5]


def test_changing_a_block_changes_neither_its_labels_nor_the_file(blocks):
    block = blocks[0]
    block["input_ids"][1] = 7
    assert block["labels"][1] == blocks[0]["input_ids"][1] == 1001


def test_labels_are_the_tokens_but_the_first_which_nothing_predicts(blocks):
    block = blocks[2]
    assert torch.equal(block["labels"][1:], block["input_ids"][1:])
    assert block["labels"][0] == -100


def test_pickled_blocks_hold_no_tokens(blocks):
    copy = pickle.loads(pickle.dumps(blocks))
    assert len(pickle.dumps(blocks)) < 1000
    assert torch.equal(copy[4]["input_ids"], blocks[4]["input_ids"])


@pytest.mark.parametrize("workers", [0, 2])
def test_range_goes_round_in_the_order_of_the_file(blocks, workers):
    loader = DataLoader(BlockRange(blocks, first=3, count=9), batch_size=2, num_workers=workers)
    firsts = [int(row[0]) for batch in loader for row in batch["input_ids"]]
    assert firsts == [1000 + 8 * (i % 5) for i in range(3, 12)]


def test_range_ends_where_it_was_told(blocks):
    with pytest.raises(IndexError, match="block 3 of 3"):
        BlockRange(blocks, first=0, count=3)[3]
    assert len(list(BlockRange(blocks, first=0, count=3))) == 3
