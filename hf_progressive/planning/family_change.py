"""Rungs that make a mixture of experts of the dense rung before them."""

from transformers import PretrainedConfig

from hf_progressive.config import RungConfig
from hf_progressive.growth.mixtures import MIXTURES
from hf_progressive.growth.target import complete_target
from hf_progressive.growth.upcycle import as_mixture, upcycling_of, with_choice


def upcycled_model_config(rung: RungConfig, before: PretrainedConfig, *, method: str) -> PretrainedConfig:
    """Return the configuration of a rung of another family than the one before it.

    What the rung does not name is kept, as growth keeps it.

    Args:
        rung: The rung, with a `family` and explicit fields.
        before: The configuration of the rung before it.
        method: The method by which the rung grows.

    Raises:
        ValueError: The method is not `upcycle`, the family is not one that the rung before can become, or a field is
            unknown, would shrink, or would change the function.
    """
    where = f"rung {rung.name}"
    if method != "upcycle":
        raise ValueError(
            f"{where}: family {rung.family} after {before.model_type} needs growth.method upcycle, which makes"
            f" mixtures of dense models; here it is {method!r}"
        )
    try:
        upcycling = upcycling_of(before, {**rung.fields, "model_type": rung.family})
        target = with_choice(upcycling, rung.fields)
        mixture = as_mixture(upcycling, before, target)
        config: PretrainedConfig = complete_target(MIXTURES[upcycling.target], mixture, target)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return config
