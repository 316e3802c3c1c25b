"""Evaluation on the device: its precision, and batches by its memory, with the answers of a CPU in float32."""

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_progressive.distributed.batching import sequences_that_fit
from hf_progressive.evaluation.bits_per_byte import bits_per_byte
from hf_progressive.evaluation.core.prompts import Request, Row
from hf_progressive.evaluation.core.scoring import score_requests
from hf_progressive.growth import grow_checkpoint, verify_growth

VOCABULARY, CONTEXT = 512, 128
FIELDS = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        **FIELDS, vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=0
    )
    return LlamaForCausalLM(config).eval()


def requests():
    rng = random.Random(0)
    made = []
    for number in range(24):
        context = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 100))]
        options = [[rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 8))] for _ in range(1 + number % 4)]
        made.append(Request(tuple(Row((*context, *option), len(context)) for option in options), 0, False))
    return made


def losses(scores):
    return [score.loss for request in scores for score in request]


@pytest.mark.parametrize(("bfloat16", "tolerance"), [(False, 1e-4), (True, 5e-2)])
def test_core_scores_are_those_of_the_cpu(model, device, bfloat16, tolerance):
    expected = losses(score_requests(model.cpu(), requests(), batch_size=1, reuse_prefixes=False))
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        found = losses(score_requests(model.to(device), requests(), reuse_prefixes=True))
    assert found == pytest.approx(expected, abs=tolerance)


def test_bits_per_byte_are_those_of_the_cpu(model, device):
    blocks = [{"input_ids": torch.randint(VOCABULARY, (CONTEXT,))} for _ in range(20)]
    lengths = torch.ones(VOCABULARY, dtype=torch.long)
    expected = bits_per_byte(model.cpu(), blocks, lengths, progress=False)
    found = bits_per_byte(model.to(device), blocks, lengths, progress=False)
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_batch_takes_no_more_memory_than_there_is(model, cuda):
    model.to(cuda)
    sequences = sequences_that_fit(model, CONTEXT, on_cpu=8)
    torch.cuda.reset_peak_memory_stats(cuda)
    with torch.no_grad():
        model(torch.zeros(sequences, CONTEXT, dtype=torch.long, device=cuda), use_cache=False)
    assert sequences > 8
    assert torch.cuda.max_memory_allocated(cuda) < torch.cuda.mem_get_info(cuda)[1]


def test_checkpoints_are_verified_on_the_device_without_tf32(model, device, tmp_path):
    model.cpu().save_pretrained(tmp_path / "parent")
    grow_checkpoint(tmp_path / "parent", tmp_path / "child", {"hidden_size": 96, "num_attention_heads": 6})
    torch.set_float32_matmul_precision("high")
    try:
        check = verify_growth(tmp_path / "parent", tmp_path / "child")
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert check.preserved
    assert check.max_abs_logit_diff <= 1e-5 * check.max_abs_logit
