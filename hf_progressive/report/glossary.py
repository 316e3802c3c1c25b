"""What the words of a report mean, as docs/glossary.md has them."""

_BASELINE = "The same architecture trained from scratch on its full budget, on the same data in the same order."
_SAVING = "1 − FLOPs to match / FLOPs of the baseline."
_TRANSFER_EFFICIENCY = (
    "(FLOPs of the baseline − FLOPs to match) / all FLOPs that went into the parent, its ancestors' included. At 1 "
    "the family up to where a model matches costs what that model costs from scratch; above 1 it costs less. Its "
    "ceiling, FLOPs of the baseline / all that went into the parent, would take a match without any FLOPs of its own."
)
_LAST_MODEL_COST = (
    "(all FLOPs that went into the parent + FLOPs to match) / FLOPs of the baseline, of the largest member: below 1 "
    "it is cheaper to grow it than to train it."
)
_FAMILY_COST = "FLOPs of all that was trained, the last model up to its match / those of all members from scratch."

OF_LADDERS = {
    "Baseline (cold)": _BASELINE,
    "Last-model cost": _LAST_MODEL_COST
    + " What was spent to finish a smaller member alone, such as a decay off a trunk, is the family's and not in it.",
    "Family cost": _FAMILY_COST,
    "FLOPs to match": (
        "What the grown model had spent, Fisher and subspace included and its parent's training not, when its "
        "validation bits per byte first came down to those its baseline ended with. Between two validation points, "
        "bits per byte are taken to be linear in log FLOPs. The model's own schedule ran on to the end of its budget; "
        "one that ends at the match was not trained."
    ),
    "Saving": _SAVING,
    "Transfer efficiency η": _TRANSFER_EFFICIENCY,
    "Parent / cold": "FLOPs of the parent's budget from scratch / those of the rung's own: how large the step is.",
    "FLOPs": (
        "Those of training, forward and backward; growing, validating and the optimizer's own arithmetic are not "
        "counted."
    ),
}
"""Each term, as a ladder's report uses it."""

OF_STUDIES = {
    "Baseline (cold)": _BASELINE,
    "Last-model cost": _LAST_MODEL_COST
    + " Where baselines are finished at several budgets and the child at one, the child is compared with the budget "
    "from scratch that has its bits per byte, read on the line through the baselines, linear in log FLOPs; beyond "
    "their ends it is extrapolated, and said to be.",
    "Family cost": _FAMILY_COST,
    "FLOPs to match": (
        "Each budget is a finished model, at the end of its own decay. Between two of them bits per byte are taken to "
        "be linear in log FLOPs; the match is where they cross what the baseline ended with. Nothing is extrapolated "
        "below the smallest budget. Estimates of Fisher information and subspace are included."
    ),
    "Saving": _SAVING,
    "Transfer efficiency η": _TRANSFER_EFFICIENCY,
    "Branches": (
        "Shorter budgets branch off the longest run where their decay begins and end with the same weights as runs by "
        "themselves; each is charged all of its steps. What the study itself spent counts shared steps once."
    ),
}
"""Each term, as a study's report uses it."""

OF_TRUNK_STUDIES = {
    "Baseline (cold)": _BASELINE + " It is finished at several budgets, each at the end of its own decay.",
    "Trunk": (
        "One training run at a constant rate that grows from size to size and decays once, at its end. Fresh weights, "
        "data and share of decay are the baseline's."
    ),
    "Budget from scratch": (
        "What it takes from scratch to have the bits per byte that a trunk ended with: read on the line through its "
        "seed's baselines, linear in log FLOPs; beyond their ends it is extrapolated, and said to be."
    ),
    "Last-model cost": (
        "(FLOPs of all stages + FLOPs of the last model after its last growth) / FLOPs of the budget from scratch: "
        "below 1 it is cheaper to grow it than to train it."
    ),
    "Family cost": (
        "(FLOPs of the whole trunk + those of its members' decays) / the budgets from scratch with the bits per byte "
        "of the members and of the last model, each read on its own size's baselines, a member's no larger than its "
        "whole budget."
    ),
    "Saving": "1 − FLOPs of the last model after its last growth / FLOPs of the budget from scratch.",
    "Transfer efficiency η": (
        "(FLOPs of the budget from scratch − FLOPs of the last model after its last growth) / FLOPs of all stages: "
        "above 1 the last-model cost is below 1. Its ceiling is the budget from scratch / FLOPs of all stages."
    ),
    "FLOPs": OF_LADDERS["FLOPs"],
    "Branches": OF_STUDIES["Branches"],
}
"""Each term, as the report of a study of trunks uses it."""
