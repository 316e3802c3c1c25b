"""Growth: from a checkpoint to a larger one that computes the same function."""

from hf_progressive.growth.families import register_family
from hf_progressive.growth.family_table import Family, WeightRule, linear, norm, reads, writes, writes_grouped
from hf_progressive.growth.grow import GrowthReport, grow_checkpoint, grow_model
from hf_progressive.growth.growth_plan import GrowthPlan, plan_growth
from hf_progressive.growth.methods import register_method
from hf_progressive.growth.new_entries import NewEntries, new_entries, new_entry_masks
from hf_progressive.growth.tensor_plan import TensorPlan
from hf_progressive.growth.verify import GrowthCheck, verify_growth

__all__ = [
    "Family",
    "GrowthCheck",
    "GrowthPlan",
    "GrowthReport",
    "NewEntries",
    "TensorPlan",
    "WeightRule",
    "grow_checkpoint",
    "grow_model",
    "linear",
    "new_entries",
    "new_entry_masks",
    "norm",
    "plan_growth",
    "reads",
    "register_family",
    "register_method",
    "verify_growth",
    "writes",
    "writes_grouped",
]
