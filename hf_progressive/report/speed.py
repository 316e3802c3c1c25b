"""How fast a run trained, and what it took beside what was priced."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_progressive.records.rung import Rung
from hf_progressive.report.formatting import NOTHING, FlopUnit, count, duration, significant
from hf_progressive.report.table import Table
from hf_progressive.storage import read_json

PLAN_NAME = "plan.json"
"""A priced plan in a run folder: what `hf-progressive plan --json` prints."""

_SECONDS_PER_HOUR = 3600


def speed_lines(rungs: Sequence[Rung]) -> list[str]:
    """Say of every rung how fast it trained.

    Args:
        rungs: The finished rungs.

    Returns:
        A sentence for each whose record has its speed.
    """
    return [_sentence(rung) for rung in rungs if rung.throughput is not None]


def _sentence(rung: Rung) -> str:
    speed = rung.throughput
    assert speed is not None
    machine = speed.device if speed.processes == 1 else f"{speed.processes} × {speed.device}"
    share = "" if speed.mfu is None else f", {_share(speed.mfu)} of the peak (MFU)"
    return f"{rung.name} trained at {count(round(speed.tokens_per_second))} tokens per second on {machine}{share}."


def _share(mfu: float | None) -> str:
    return NOTHING if mfu is None else f"{100 * mfu:.1f} %"


def speed_table(rungs: Sequence[Rung]) -> Table | None:
    """Lay out how fast every rung trained and what its training run took.

    Args:
        rungs: The finished rungs.

    Returns:
        A row per rung whose record has its speed; None where none has.
    """
    known = [(rung.name, rung.throughput) for rung in rungs if rung.throughput is not None]
    if not known:
        return None
    return Table(
        groups=(),
        header=("rung", "tokens per second", "MFU", "training", "evaluation", "saving"),
        rows=tuple(
            (
                name,
                count(round(speed.tokens_per_second)),
                _share(speed.mfu),
                *(duration(speed.seconds.get(part, 0.0)) for part in ("training", "evaluation", "saving")),
            )
            for name, speed in known
        ),
    )


@dataclass(frozen=True, kw_only=True)
class PricedRung:
    """What a rung's training was priced at."""

    flops: float
    """Training FLOPs."""

    hours: float
    """Hours."""

    mfu: float | None
    """The utilisation that was assumed or measured for the price."""


def read_prices(path: Path) -> dict[str, PricedRung]:
    """Read what rungs were priced at.

    Args:
        path: A file with what `hf-progressive plan --json` printed.

    Returns:
        The prices by rung, as the plan's configuration trains them.

    Raises:
        ValueError: The file holds something else.
    """
    plan = read_json(path)
    try:
        return {rung["name"]: _price(rung, plan["cluster"]["mfu"]) for rung in plan["rungs"]}
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path}: is not what `hf-progressive plan --json` prints; write it anew or remove it"
        ) from None


def _price(rung: Mapping[str, Any], mfu: float | None) -> PricedRung:
    cost, assumed = rung["as_configured"], (rung.get("speed") or {}).get("mfu", mfu)
    return PricedRung(
        flops=float(cost["flops"]), hours=float(cost["hours"]), mfu=None if assumed is None else float(assumed)
    )


def priced_table(rungs: Sequence[Rung], prices: Mapping[str, PricedRung]) -> Table | None:
    """Set what every rung's training was priced at beside what it took.

    Args:
        rungs: The finished rungs.
        prices: What they were priced at, by name.

    Returns:
        A row per rung that has a price and whose record has its speed; None where there is none. The hours it took
        are its tokens at its measured speed.
    """
    pairs = [(rung, prices[rung.name]) for rung in rungs if rung.throughput is not None and rung.name in prices]
    if not pairs:
        return None
    unit = FlopUnit.for_values(price.flops for _, price in pairs)
    return Table(
        groups=(("", 1), (unit.name, 2), ("hours", 2), ("MFU", 2), ("hours", 1)),
        header=("rung", "priced", "real", "priced", "real", "priced", "real", "real / priced"),
        rows=tuple(_priced_row(rung, price, unit) for rung, price in pairs),
    )


def _priced_row(rung: Rung, price: PricedRung, unit: FlopUnit) -> tuple[str, ...]:
    speed = rung.throughput
    assert speed is not None
    hours = rung.tokens / speed.tokens_per_second / _SECONDS_PER_HOUR
    return (
        rung.name,
        unit.number(price.flops),
        unit.number(rung.train_flops),
        significant(price.hours),
        significant(hours),
        _share(price.mfu),
        _share(speed.mfu),
        f"{hours / price.hours:.2f} ×" if price.hours else NOTHING,
    )
