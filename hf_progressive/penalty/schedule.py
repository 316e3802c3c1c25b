"""How λ and γ move over a run: constant, or falling to zero at a stated fraction of it."""

import math

PHI_SCHEDULES = ("constant", "linear", "cosine")
"""The names `schedule_factor` knows."""


def schedule_factor(schedule: str, progress: float, until: float = 1.0) -> float:
    """Return the factor on λ and γ at a point of the run.

    With x = progress / until, the factor is 1 (constant), 1 − x (linear) or ½(1 + cos πx) (cosine) while x < 1, and
    0 from there on.

    Args:
        schedule: One of `PHI_SCHEDULES`.
        progress: Optimizer steps already taken over the steps of the whole run, in [0, 1].
        until: Fraction of the run at which the factor is 0, above 0. Above 1 the run ends before that: a run cut
            short follows the same course as a longer one.

    >>> [schedule_factor(name, 0.25, until=0.5) for name in PHI_SCHEDULES]
    [1.0, 0.5, 0.5]
    >>> schedule_factor("constant", 0.5, until=0.5)
    0.0
    """
    if schedule not in PHI_SCHEDULES:
        raise ValueError(f"phi_schedule is {schedule!r}; it must be one of {', '.join(PHI_SCHEDULES)}")
    if not 0.0 < until < math.inf:
        raise ValueError(f"phi_until is {until}; it must be a fraction of the run above 0")
    position = progress / until
    if position >= 1.0:
        return 0.0
    if schedule == "constant":
        return 1.0
    return 1.0 - position if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * position))
