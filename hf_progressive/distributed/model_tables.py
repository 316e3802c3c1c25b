"""Whether a model has the rows that token ids and their places look up.

On a CPU a look-up beyond a table is an IndexError. On a GPU it ends the process's use of the device, with a message
that names neither the tokens nor the table, so that what can be known beforehand is looked at beforehand.
"""

from typing import Any

from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

_POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings", "position_embedding", "positions_embed")
_UNUSED_ROWS = 8  # at the most, of a table of positions


def require_within_tables(model: nn.Module, ids: Tensor, what: str, *, length: int | None = None) -> None:
    """Raise a ValueError if a model has too few learned positions for token ids, or too small a vocabulary.

    Ids that are on a device already are measured and not looked at, for which the process would wait.

    Args:
        model: A model of Transformers, wrapped or not; of any other nothing is known.
        ids: Token ids (..., T).
        what: What they are called in the message.
        length: Tokens of a sequence, where they are not `ids.shape[-1]`.

    >>> from transformers import GPT2Config, GPT2Model
    >>> sizes = {"n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 8, "vocab_size": 16}
    >>> model = GPT2Model(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    >>> require_within_tables(model, Tensor([[3, 16]]).long(), "blocks")
    Traceback (most recent call last):
    ValueError: blocks hold the token id 16, GPT2Model has the ids 0 to 15; take the model's own tokenizer
    """
    core = extract_model_from_parallel(model, keep_torch_compile=False)
    length = ids.shape[-1] if length is None else length
    positions = _learned_positions(core, length)
    if positions is not None:
        name = type(core).__name__
        raise ValueError(f"{what} have {length} tokens, {name} has {positions} learned positions; cut them to that")
    rows = _vocabulary(core)
    if rows is None or ids.device.type != "cpu" or not ids.numel():
        return
    least, largest = (int(end) for end in ids.aminmax())
    if least < 0 or largest >= rows:
        wrong = least if least < 0 else largest
        has = f"{type(core).__name__} has the ids 0 to {rows - 1}"
        raise ValueError(f"{what} hold the token id {wrong}, {has}; take the model's own tokenizer")


# The learned positions of a model, where they are fewer than so many; None where they do, or none are learned.
def _learned_positions(model: nn.Module, wanted: int) -> int | None:
    config: Any = getattr(model, "config", None)
    of_text = config.get_text_config() if hasattr(config, "get_text_config") else config
    known = getattr(of_text, "max_position_embeddings", None)  # None in some configs, too
    if known is not None and wanted + _UNUSED_ROWS <= known:
        return None  # without a look at the modules
    if of_text is not config:  # the tables may be those of pictures
        return None
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _POSITION_TABLES:
            # The first rows may stand for padding: OPT says so by an offset, RoBERTa by the row that padding has.
            unused = getattr(module, "offset", 0 if module.padding_idx is None else module.padding_idx + 1)
            return module.num_embeddings - unused if wanted > module.num_embeddings - unused else None
    return None


def _vocabulary(model: Any) -> int | None:
    if not hasattr(model, "get_input_embeddings"):
        return None
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:  # of a model of Transformers that reads no tokens
        return None
    return table.num_embeddings if isinstance(table, nn.Embedding) else None
