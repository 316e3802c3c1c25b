"""Sizes of a ladder that begins with a model trained elsewhere: its first rung's are given, the others' follow.

What a later rung does not name is kept from the rung before it, as growth keeps it, so that a ladder continues the
architecture that it was handed whatever this package would have chosen itself.
"""

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from hf_progressive.config import LadderConfig, ModelConfig, RungConfig
from hf_progressive.data import load_tokenizer, vocabulary_size
from hf_progressive.growth.families import family_of
from hf_progressive.growth.target import complete_target
from hf_progressive.planning.sizing import DIAL_FIELDS, DialFields, dial_sizes
from hf_progressive.records.origin import Origin, locate_origin


def find_origin(config: LadderConfig, taken: Path | None = None) -> Origin | None:
    """Find the model that a ladder begins with and check that it fits the ladder.

    Args:
        config: The ladder.
        taken: Where the run has it already, so that nothing need be fetched.

    Returns:
        The model, perhaps without its weights; None for a ladder that trains all of its rungs.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: It is of another family, too short for the blocks, or its tokenizer is not the corpus's.
        OSError: The Hub refused or failed.
    """
    first = config.rungs[0]
    if first.source is None:
        return None
    try:
        if taken is not None:
            return locate_origin(str(taken), weights=False)
        origin = locate_origin(first.source, first.revision, weights=False)
        _check_architecture(origin, config)
        _check_tokenizer(origin, config)
    except (OSError, ValueError) as error:
        raise type(error)(f"rung {first.name}: {error}") from None
    return origin


def _check_architecture(origin: Origin, config: LadderConfig) -> None:
    model_config = origin.checkpoint.read_config()
    if model_config.model_type != config.model.family:
        raise ValueError(
            f"{origin} is a {model_config.model_type}, model.family is {config.model.family!r}; set it to that"
        )
    positions = model_config.max_position_embeddings
    if config.model.context > positions:
        raise ValueError(
            f"{origin} reads {positions} tokens, model.context is {config.model.context}; lower it to {positions}"
        )


def _check_tokenizer(origin: Origin, config: LadderConfig) -> None:
    own = origin.read_tokenizer()
    named = config.data.tokenizer.name
    if named is None and own is None:
        raise ValueError(f"{origin} has no tokenizer; name the one it was trained with in data.tokenizer.name")
    tokenizer = own if named is None else load_tokenizer(config.data.tokenizer, ())
    if own is not None and own.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"{origin} has another tokenizer than data.tokenizer.name {named!r}; leave that out to take the rung's own"
        )
    needed, rows = vocabulary_size(tokenizer), origin.checkpoint.read_config().vocab_size
    if needed > rows:
        raise ValueError(
            f"{origin} has a vocabulary of {rows}, the tokenizer needs {needed}; grow it first:"
            f" hf-progressive grow SRC OUT --set vocab_size={needed}"
        )


def larger_config(model: ModelConfig, rung: RungConfig, before: Any) -> PretrainedConfig:
    """Return the configuration of a rung that continues a given architecture.

    Args:
        model: What every trained rung shares; its fields are set where the rung names no others.
        rung: A depth on the dial, or fields.
        before: The configuration of the rung before it.

    Returns:
        That configuration with the rung's sizes. MLP width and key/value heads follow the family's rule where the rung
        before follows it, and otherwise keep their ratio to width and heads.

    Raises:
        ValueError: A field is unknown, would shrink, or would change the function.
    """
    names = DIAL_FIELDS.get(model.family)
    if names is None:
        raise ValueError(f"model.family: {model.family!r} is not among {', '.join(DIAL_FIELDS)}")
    sizes = rung.fields if rung.depth is None else dial_sizes(model, rung, rung.depth, names)
    given = {**names.defaults, **model.fields, **sizes}
    try:
        config: PretrainedConfig = complete_target(family_of(before), before, _derived(given, before, names) | given)
    except ValueError as error:
        raise ValueError(f"rung {rung.name}: {error}") from None
    return config


def _derived(given: dict[str, Any], before: Any, names: DialFields) -> dict[str, Any]:
    derived = {}
    width, heads = given.get(names.width), given.get(names.heads)
    if names.mlp is not None and width is not None:
        old, mlp = getattr(before, names.width), getattr(before, names.mlp)
        derived[names.mlp] = names.mlp_width(width) if mlp == names.mlp_width(old) else -(-mlp * width // old)
    if names.key_value_heads is not None and heads is not None:
        derived[names.key_value_heads] = heads * getattr(before, names.key_value_heads) // getattr(before, names.heads)
    return derived
