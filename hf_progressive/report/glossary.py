"""What the words of a report mean."""

TRANSFER_EFFICIENCY = (
    "(FLOPs of the baseline − FLOPs to match) / all FLOPs that went into the parent, its ancestors' included"
)
"""The one definition of η."""

DEFINITIONS: dict[str, str] = {
    "Baseline": "The same architecture trained from nothing on its full budget, reading the same corpus in order.",
    "FLOPs to match": (
        "What the grown model had spent, Fisher and subspace included and its parent's training not, when its "
        "validation bits per byte first came down to those its baseline ended with. Between two validation points, "
        "bits per byte are taken to be linear in log FLOPs."
    ),
    "Saving": "1 − FLOPs to match / FLOPs of the baseline.",
    "Transfer efficiency η": (
        f"{TRANSFER_EFFICIENCY}. At η = 1 the family up to where a rung matches costs what that rung costs cold; "
        f"above 1 it costs less."
    ),
    "Parent / cold": (
        "FLOPs of the parent's full cold budget / FLOPs of the rung's own: how large the step is. η does not divide "
        "by it, but by what was spent."
    ),
    "Schedule": (
        "A grown model's schedule runs to the end of its own budget; a run planned to end at the crossing was not "
        "trained."
    ),
    "FLOPs": (
        "Those of training, forward and backward. Growing and validating are not counted; the times show them, and "
        "what validation adds stands under the table."
    ),
}
"""Each term, as a report uses it."""
