"""Attention over whole blocks of text: SDPA's causal flag alone, and no mask.

Transformers builds a mask from the positions, to tell packed sequences apart. Whether one is needed it reads from the
device, once in every forward pass; in compiled code it cannot read, and always passes a full mask, with which SDPA's
flash kernels do not run. An attention function without a mask function gets none
(https://huggingface.co/docs/transformers/attention_interface).
"""

from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

BLOCK_ATTENTION = "sdpa_without_masks"
"""The name under which Transformers knows it."""


def attend_without_masks(model: PreTrainedModel, context: int) -> bool:
    """Let a model attend over blocks by SDPA's causal flag, if that is the same.

    It is where every block is one stretch of text without padding, and no layer looks back by less than a block.

    Args:
        model: A causal language model; from now on it must see such blocks alone.
        context: Tokens of a block.

    Returns:
        Whether it does; no where the model does not use SDPA or has a window.
    """
    config = model.config
    if config._attn_implementation != "sdpa" or not model._can_set_attn_implementation():
        return False
    limits = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if any(limit is not None and limit < context for limit in limits):
        return False
    AttentionInterface.register(BLOCK_ATTENTION, sdpa_attention_forward)
    model.set_attn_implementation(BLOCK_ATTENTION)
    return bool(config._attn_implementation == BLOCK_ATTENTION)
