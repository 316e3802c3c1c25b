"""What is no model is refused in one line, wherever a model in memory is wanted."""

import pytest
import torch

import hf_progressive as hp
from hf_progressive.distributed.model_in_memory import require_in_memory

BLOCKS = torch.zeros(1, 4, dtype=torch.long)
WANTING = {
    "estimate_fisher": lambda model: hp.estimate_fisher(model, [BLOCKS]),
    "learn_subspace": lambda model: hp.learn_subspace(model),
    "bits_per_byte": lambda model: hp.bits_per_byte(model, [{"input_ids": BLOCKS[0]}], [1]),
    "text_bits_per_byte": lambda model: hp.text_bits_per_byte(model, None, ["a text"]),
    "evaluate_core": lambda model: hp.evaluate_core(model, None, "bundle"),
    "generated_blocks": lambda model: hp.generated_blocks(model, 1, 4, start=0),
    "ParentDivergence": lambda model: hp.ParentDivergence(parent=model, blocks=BLOCKS),
    "frozen_after_growth": lambda model: hp.frozen_after_growth(model, "grown"),
}


@pytest.mark.parametrize("name", WANTING)
def test_a_name_in_the_place_of_a_model_is_refused(name):
    with pytest.raises(ValueError, match=r"is the name 'ORG/d11'; load it first, as by AutoModelForCausalLM"):
        WANTING[name]("ORG/d11")


def test_what_is_neither_a_model_nor_a_name_is_called_by_its_class():
    with pytest.raises(ValueError, match="^parent is of the class NoneType; give a model, as"):
        require_in_memory(None, "parent")
