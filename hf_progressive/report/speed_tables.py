"""How fast a run trained, and what it took beside what was priced."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_progressive.records.rung import RungRecord
from hf_progressive.report.formatting import NOTHING, FlopUnit, count, duration, percent, significant
from hf_progressive.report.table import Table
from hf_progressive.storage import read_json

PLAN_NAME = "plan.json"
"""A priced plan in a run folder: what `hf-progressive plan --json` prints."""

_SECONDS_PER_HOUR = 3600


def _share(mfu: float | None) -> str:
    return NOTHING if mfu is None else percent(mfu, 1)


def speed_table(rungs: Sequence[RungRecord]) -> Table | None:
    """Lay out how fast each rung trained whose record has its speed, and on what; None where none has."""
    rows = tuple(
        (
            rung.name,
            count(round(speed.rate)),
            _share(speed.mfu),
            *(duration(speed.seconds.get(part, 0.0)) for part in ("training", "evaluation", "saving")),
            speed.device if speed.processes == 1 else f"{speed.processes} × {speed.device}",
        )
        for rung in rungs
        if (speed := rung.speed) is not None
    )
    header = ("rung", "tokens per second", "of the peak (MFU)", "training", "evaluation", "saving", "on")
    return Table(header=header, rows=rows) if rows else None


@dataclass(frozen=True, kw_only=True)
class PricedRung:
    """What a rung's training was priced at."""

    flops: float
    """Training FLOPs."""

    hours: float
    """Hours."""

    mfu: float | None
    """The utilisation that was assumed or measured for the price."""


def read_prices(path: Path, ladder: str | None = None) -> dict[str, PricedRung]:
    """Read what rungs, where it is named those of a ladder, were priced at, as the plan's configuration trains them.

    Raises:
        ValueError: The file is not what `hf-progressive plan --json` prints, or is of another ladder.
    """
    plan = read_json(path)
    if ladder is not None and plan.get("name", ladder) != ladder:
        raise ValueError(f"{path}: is the plan of {plan['name']}, not of {ladder}; write it anew or remove it")
    try:
        return {rung["name"]: _price(rung, plan["cluster"]["mfu"]) for rung in plan["rungs"]}
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        raise ValueError(
            f"{path}: is not what `hf-progressive plan --json` prints; write it anew or remove it"
        ) from None


def _price(rung: Mapping[str, Any], mfu: float | None) -> PricedRung:
    cost, assumed = rung["as_configured"], (rung.get("speed") or {}).get("mfu", mfu)
    return PricedRung(
        flops=float(cost["flops"]), hours=float(cost["hours"]), mfu=None if assumed is None else float(assumed)
    )


def priced_table(rungs: Sequence[RungRecord], prices: Mapping[str, PricedRung]) -> Table | None:
    """Set what every rung's training was priced at beside what it took: its tokens at its measured speed.

    None where no rung has both a price and a speed.
    """
    pairs = [(rung, prices[rung.name]) for rung in rungs if rung.speed is not None and rung.name in prices]
    if not pairs:
        return None
    unit = FlopUnit.for_values(price.flops for _, price in pairs)
    return Table(
        groups=(("", 1), (unit.name, 2), ("hours", 2), ("MFU", 2), ("hours", 1)),
        header=("rung", "priced", "real", "priced", "real", "priced", "real", "real / priced"),
        rows=tuple(_priced_row(rung, price, unit) for rung, price in pairs),
    )


def _priced_row(rung: RungRecord, price: PricedRung, unit: FlopUnit) -> tuple[str, ...]:
    speed = rung.speed
    assert speed is not None
    hours = rung.tokens / speed.rate / _SECONDS_PER_HOUR
    return (
        rung.name,
        unit.number(price.flops),
        unit.number(rung.flops.train),
        significant(price.hours),
        significant(hours),
        _share(price.mfu),
        _share(speed.mfu),
        f"{hours / price.hours:.2f} ×" if price.hours else NOTHING,
    )
