"""Fisher information and subspaces of a trained model: estimates that Φ is made of."""

from hf_progressive.estimation.fisher import estimate_fisher
from hf_progressive.estimation.saved_estimates import FisherRecord, SubspaceRecord, save_estimate
from hf_progressive.estimation.subspace import learn_subspace

__all__ = [
    "FisherRecord",
    "SubspaceRecord",
    "estimate_fisher",
    "learn_subspace",
    "save_estimate",
]
