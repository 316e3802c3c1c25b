"""Five mistakes, one a line, that mypy finds only where the installed package says that it is typed."""

from hf_progressive import InheritancePenalty, grow_checkpoint, publish_rung, verify_growth


def mistaken() -> tuple[str, object, int]:
    grow_checkpoint("parent", "child", {"n_layer": 8}, seed="one")
    seconds: str = grow_checkpoint("parent", "child", {"n_layer": 8}).seconds
    difference = verify_growth("parent", "child").max_logit_diff
    InheritancePenalty(anchor=None)
    address: int = publish_rung("final", "ORG/name")
    return seconds, difference, address
