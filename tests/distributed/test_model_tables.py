"""What is refused beforehand is what a stock model, on a CPU, has no row for; and nothing else is."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertLMHeadModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from hf_progressive.distributed.model_tables import require_within_tables

POSITIONS, VOCABULARY = 12, 20
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": VOCABULARY}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
WITH_POSITIONS = {**SIZES, **SPECIAL, "max_position_embeddings": POSITIONS}

LEARNED = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**SIZES, **SPECIAL, n_positions=POSITIONS)),
    "gpt_bigcode": lambda: GPTBigCodeForCausalLM(GPTBigCodeConfig(**SIZES, **SPECIAL, n_positions=POSITIONS)),
    "gpt_neo": lambda: GPTNeoForCausalLM(
        GPTNeoConfig(**{**WITH_POSITIONS, "num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]]})
    ),
    "opt": lambda: OPTForCausalLM(OPTConfig(**WITH_POSITIONS, ffn_dim=8, word_embed_proj_dim=8)),
    "bert": lambda: BertLMHeadModel(BertConfig(**WITH_POSITIONS, intermediate_size=8, is_decoder=True)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**WITH_POSITIONS, intermediate_size=8)),
    "bart": lambda: BartForCausalLM(
        BartConfig(
            d_model=8, vocab_size=VOCABULARY, max_position_embeddings=POSITIONS, decoder_layers=1,
            decoder_attention_heads=2, decoder_ffn_dim=8, forced_eos_token_id=None, decoder_start_token_id=0,
            **SPECIAL,
        )
    ),
}  # fmt: skip


def reads(model: nn.Module, ids: torch.Tensor) -> bool:
    try:
        model(input_ids=ids)
    except (IndexError, RuntimeError):
        return False
    return True


def refused(model: nn.Module, ids: torch.Tensor) -> bool:
    try:
        require_within_tables(model, ids, "blocks")
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("family", LEARNED)
def test_lengths_are_refused_that_a_model_cannot_read(family):
    model = LEARNED[family]().eval()
    readable = [reads(model, torch.full((2, length), 5)) for length in range(1, POSITIONS + 4)]
    assert any(readable)
    assert not all(readable)
    assert [not refused(model, torch.full((2, length), 5)) for length in range(1, POSITIONS + 4)] == readable


@pytest.mark.parametrize("family", LEARNED)
def test_ids_are_refused_that_a_model_has_no_row_for(family):
    model = LEARNED[family]().eval()
    for one in (-1, 0, VOCABULARY - 1, VOCABULARY):
        ids = torch.tensor([[5, one, 5]])
        assert refused(model, ids) is not reads(model, ids), one


def test_rotary_positions_are_not_learned_and_go_on():
    model = LlamaForCausalLM(LlamaConfig(**WITH_POSITIONS, intermediate_size=8)).eval()
    beyond = torch.full((1, 3 * POSITIONS), 5)
    assert reads(model, beyond)
    require_within_tables(model, beyond, "blocks")


def test_a_wrapped_model_is_looked_at_within():
    model = LEARNED["gpt2"]()
    with pytest.raises(ValueError, match="GPT2LMHeadModel has 12 learned positions"):
        require_within_tables(torch.compile(model), torch.full((1, 13), 5), "blocks")


def test_what_is_no_model_of_transformers_is_left_alone():
    require_within_tables(nn.Linear(2, 2), torch.full((1, 99), 99), "blocks")


def test_a_config_that_leaves_its_positions_open_is_no_obstacle():
    model = nn.Module()
    model.config = SimpleNamespace(max_position_embeddings=None)
    model.wpe = nn.Embedding(POSITIONS, 8)
    require_within_tables(model, torch.full((1, POSITIONS), 5), "blocks")
    with pytest.raises(ValueError, match="12 learned positions"):
        require_within_tables(model, torch.full((1, POSITIONS + 1), 5), "blocks")


def test_ids_on_a_device_are_not_read():
    on_device = torch.empty((1, 3), dtype=torch.long, device="meta")  # of which there is nothing to read
    require_within_tables(LEARNED["gpt2"](), on_device, "blocks")
    with pytest.raises(ValueError, match="^blocks have 13 tokens, .* 12 learned positions; cut them to that$"):
        require_within_tables(LEARNED["gpt2"](), torch.empty((1, 13), device="meta"), "blocks")


def test_a_table_of_the_pictures_is_not_taken_for_one_of_the_text():
    text = {**SIZES, "intermediate_size": 16, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 4096}
    vision = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=text, vision_config={**vision, "image_size": 8, "patch_size": 4}, mm_tokens_per_image=4
    )
    model = Gemma3ForConditionalGeneration(config)
    ids = torch.zeros(1, 32, dtype=torch.long)
    require_within_tables(model, ids, "blocks")
    assert model(input_ids=ids).logits.shape[1] == 32
    with pytest.raises(ValueError, match="blocks hold the token id 20"):
        require_within_tables(model, ids + VOCABULARY, "blocks")
