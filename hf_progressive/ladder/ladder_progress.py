"""How far a ladder has come, for people: which training of how many, and the time that is left for the whole."""

import logging
import time

from hf_progressive.planning.ladder_plan import RungPlan

logger = logging.getLogger(__name__)


class LadderProgress:
    """Says which training begins, and how long all that are left will take.

    The time left goes by the FLOPs that this process's trainings took so far, estimates, evaluations and saving
    included.

    Args:
        trainings: Those that are left, in their order: a rung, and whether it is its baseline that is trained.
        finished: How many are done already.
    """

    def __init__(self, trainings: list[tuple[RungPlan, bool]], finished: int) -> None:
        self._trainings, self._before = trainings, finished
        self._done, self._began = 0, time.monotonic()

    def begin(self) -> None:
        """Log that the next training begins."""
        rung, is_baseline = self._trainings[self._done]
        number, all_of_them = self._before + self._done + 1, self._before + len(self._trainings)
        how = f"grown from {rung.parent}" if rung.parent and not is_baseline else "from scratch"
        name = f"baseline of {rung.name}" if is_baseline else rung.name
        tokens = rung.size.tokens if is_baseline else rung.tokens
        left = self.seconds_left()
        rest = "" if left is None else f"; about {describe_seconds(left)} left for the whole"
        logger.info("%d of %d: %s, %s, %s tokens%s", number, all_of_them, name, how, f"{tokens:,}", rest)

    def end(self) -> None:
        """Take the training as done."""
        self._done += 1

    @property
    def left(self) -> list[tuple[RungPlan, bool]]:
        """The trainings that are not done, the one under way first."""
        return self._trainings[self._done :]

    def seconds_left(self, share: float = 0.0, *, share_before: float = 0.0) -> float | None:
        """Return the time that is left for the whole; None before there is a pace to go by.

        Args:
            share: What has been done of the training under way.
            share_before: What of it an earlier process had done.
        """
        flops = [rung.size.flops if is_baseline else rung.flops for rung, is_baseline in self._trainings]
        before, left = sum(flops[: self._done]), sum(flops[self._done :])
        under_way = flops[self._done] if self._done < len(flops) else 0.0
        spent = before + (share - share_before) * under_way
        return (time.monotonic() - self._began) * (left - share * under_way) / spent if spent > 0 else None


def describe_seconds(seconds: float) -> str:
    """Return a duration for people: hours and minutes, minutes and seconds, or seconds.

    >>> describe_seconds(7325), describe_seconds(61), describe_seconds(5.4)
    ('2 h 02 min', '1 min 01 s', '5 s')
    """
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
