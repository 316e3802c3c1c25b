"""A model where one is wanted, and not the name that Transformers and TRL would load it by."""

import os

from torch import nn


def require_in_memory(model: object, called: str = "model") -> None:
    """Raise a ValueError unless it is a model, loaded.

    >>> require_in_memory(nn.Linear(1, 1))
    >>> require_in_memory("ORG/d11", "parent")
    Traceback (most recent call last):
    ValueError: parent is the name 'ORG/d11'; load it first, as by AutoModelForCausalLM.from_pretrained('ORG/d11')
    """
    if isinstance(model, nn.Module):
        return
    if isinstance(model, str | os.PathLike):
        name = repr(os.fspath(model))
        told = f"the name {name}; load it first, as by AutoModelForCausalLM.from_pretrained({name})"
    else:
        told = f"of the class {type(model).__name__}; give a model, as AutoModelForCausalLM.from_pretrained(...) does"
    raise ValueError(f"{called} is {told}")
