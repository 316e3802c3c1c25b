"""A ladder's results in a terminal of 100 columns; pages have the whole tables."""

import textwrap
from collections.abc import Sequence

from hf_progressive.records.rung import RungRecord
from hf_progressive.report.formatting import count, duration, percent, span
from hf_progressive.report.ladder_tables import core_table, rung_table, table_notes, totals_table
from hf_progressive.report.table import Table

COLUMNS = 100
"""The widest line of tables and notes, unless names are very long."""

_LEFT_OUT = ("parent", ": params", "/ cold", "×width", "|Δlogit|", "params")
"""Columns of the table of rungs that a terminal does not show: the first always, the others where names are long."""
_ALWAYS = 3


def results_table(rungs: Sequence[RungRecord]) -> str:
    """Return the results for the terminal: a row per rung, the family's totals, and what must be said about both."""
    tables = [terminal_table(rungs), totals_table(rungs), _core(rungs)]
    notes = [*table_notes(rungs), *_speed(rungs)]
    wrapped = (line for note in notes for line in textwrap.wrap(note, COLUMNS, subsequent_indent="  "))
    return "\n\n".join([*(table.plain() for table in tables if table), "\n".join(wrapped)])


def terminal_table(rungs: Sequence[RungRecord]) -> Table:
    """Lay out what was measured on every rung, as many columns of it as fit."""
    table = rung_table(rungs)
    for number, title in enumerate(_LEFT_OUT, start=1):
        table = table.without(title)
        if number >= _ALWAYS and _fits(table):
            break
    return table


# CORE has a column for every rung: where they are many, those of the largest.
def _core(rungs: Sequence[RungRecord]) -> Table | None:
    table = core_table(rungs)
    for rung in rungs[:-1]:
        if table is not None and not _fits(table):
            table = table.without(rung.name)
    return table


def _fits(table: Table) -> bool:
    return max(map(len, table.plain().splitlines())) <= COLUMNS


def _speed(rungs: Sequence[RungRecord]) -> list[str]:
    speeds = [rung.speed for rung in rungs if rung.speed is not None]
    if not speeds:
        return []
    spent = sum(sum(speed.seconds.values()) for speed in speeds)
    rates = span([speed.rate for speed in speeds], lambda rate: count(round(rate)))
    known = [speed.mfu for speed in speeds if speed.mfu is not None]
    mfu = f", MFU {span(known, percent)}" if known else ""
    baselines = "; baselines came on top" if any(rung.cold is not None for rung in rungs) else ""
    return [f"The rungs trained for {duration(spent)} in all, at {rates} tokens/s{mfu}{baselines}."]
