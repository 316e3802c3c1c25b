"""The results as tables: cells for any renderer, plain text for the terminal, Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from hf_progressive.records.family import Count, Part, count_four_ways
from hf_progressive.records.rung import Rung
from hf_progressive.report.formatting import NOTHING, FlopUnit, count, minus, percent, small

PLANNED = "*"
"""Marks a cold cost that no run has measured."""

AT_LEAST = "≥ "
"""Marks a sum that lacks what is not known of a model trained elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text; the first column names the row, the others hold numbers."""

    groups: tuple[tuple[str, int], ...]
    """What stands over the header: titles and how many columns each spans; over a single one, its first words."""

    header: tuple[str, ...]
    """Column titles."""

    rows: tuple[tuple[str, ...], ...]
    """Cells."""

    def plain(self) -> str:
        """Return the table for a terminal.

        Returns:
            Lines of aligned columns.
        """
        widths = [max(len(cells[i]) for cells in (self.header, *self.rows)) for i in range(len(self.header))]
        lines = [_aligned(self.header, widths), *(_aligned(row, widths) for row in self.rows)]
        if self.groups:
            lines.insert(0, self._group_line(widths))
        return "\n".join(lines)

    def markdown(self) -> str:
        """Return the table in Markdown, with the groups written into the column titles.

        Returns:
            A pipe table; cells are escaped.
        """
        over = [f"{title}:" if span > 1 and title else title for title, span in self.groups for _ in range(span)]
        over = over or [""] * len(self.header)
        titles = [f"{words} {title}".strip() for words, title in zip(over, self.header, strict=True)]
        rule = ["---", *["---:"] * (len(self.header) - 1)]
        cells = [[escape_markdown(cell) for cell in row] for row in (titles, *self.rows)]
        return "\n".join("| " + " | ".join(row) + " |" for row in (cells[0], rule, *cells[1:]))

    def _group_line(self, widths: Sequence[int]) -> str:
        parts, first = [], 0
        for title, span in self.groups:
            width = sum(widths[first : first + span]) + 2 * (span - 1)
            parts.append(f" {title} ".center(width, "─") if title and span > 1 else f"{title:>{width}}")
            first += span
        return "  ".join(parts).rstrip()


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "  ".join([f"{first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in others)]).rstrip()


def escape_markdown(text: str) -> str:
    r"""Escape what Markdown, or HTML inside it, would take for markup.

    Args:
        text: Any text.

    Returns:
        Text that is shown as it was given, on one line.

    >>> escape_markdown("a|b<c>_d_")
    'a\\|b\\<c\\>\\_d\\_'
    """
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>|#!~&$" else char for char in " ".join(text.split()))


def flop_unit(rungs: Sequence[Rung]) -> FlopUnit:
    """Return the unit for all FLOPs of a run.

    Args:
        rungs: Its finished rungs.

    Returns:
        The unit that suits the dearest rung.
    """
    return FlopUnit.for_values(max(rung.cold_flops, rung.flops) for rung in rungs)


def rung_table(rungs: Sequence[Rung]) -> Table:
    """Lay out what was measured on every rung.

    Args:
        rungs: The finished rungs, from the smallest.

    Returns:
        One row per rung.
    """
    unit = flop_unit(rungs)
    return Table(
        groups=(
            *(("", 2), ("layers", 1), ("", 1), ("tokens", 1), ("max", 1)),
            *(("bits per byte", 3), (unit.name, 3), ("", 2), ("parent", 1)),
        ),
        header=(
            *("rung", "parent", "×width", "params", ": params", "|Δlogit|"),
            *("own", "cold", "gap", "spent", "to match", "cold", "saving", "η", "/ cold"),
        ),
        rows=tuple(_rung_row(rung, unit) for rung in rungs),
    )


def _rung_row(rung: Rung, unit: FlopUnit) -> tuple[str, ...]:
    baseline = rung.cold
    return (
        rung.name,
        rung.parent or NOTHING,
        f"{rung.layers or '?'}×{rung.width or '?'}",
        count(rung.parameters),
        f"{rung.tokens_per_parameter:.2f}" if rung.tokens else NOTHING,
        NOTHING if rung.max_abs_logit_diff is None else small(rung.max_abs_logit_diff),
        f"{rung.bits_per_byte:.4f}",
        NOTHING if baseline is None else f"{baseline.bits_per_byte:.4f}",
        NOTHING if rung.gap is None else minus(f"{rung.gap:+.4f}"),
        spent(rung, unit),
        _to_match(rung, unit),
        unit.number(rung.cold_flops) + (PLANNED if rung.cold_is_planned else "") if rung.cold_is_known else NOTHING,
        NOTHING if rung.saving is None else percent(rung.saving),
        NOTHING if rung.eta is None else minus(f"{rung.eta:.2f}"),
        NOTHING if rung.parent_share is None else f"{rung.parent_share:.2f}",
    )


def spent(rung: Rung, unit: FlopUnit) -> str:
    """Write what was spent on a rung; of one that was taken over, all that is known to have gone into it.

    Args:
        rung: The rung.
        unit: The unit of FLOPs.

    Returns:
        The number, a lower bound, or a dash.
    """
    if rung.origin is None or rung.origin.is_complete:
        return unit.number(rung.flops)
    return AT_LEAST + unit.number(rung.flops) if rung.flops else NOTHING


def _to_match(rung: Rung, unit: FlopUnit) -> str:
    if rung.flops_to_match is not None:
        return unit.number(rung.flops_to_match)
    return NOTHING if rung.cold is None else "not matched"


def totals_table(rungs: Sequence[Rung]) -> Table:
    """Lay out what the family costs, counted four ways side by side.

    Args:
        rungs: The finished rungs, from the smallest; at least one.

    Returns:
        One row for each way of counting.
    """
    counts, unit = count_four_ways(rungs), flop_unit(rungs)
    return Table(
        groups=(),
        header=("the family", unit.name, "of all cold", "of the last alone"),
        rows=(*(_totals_row(count, counts[0], counts[-1], unit) for count in counts), *_validation_row(rungs, counts)),
    )


def _validation_row(rungs: Sequence[Rung], counts: Sequence[Count]) -> Sequence[tuple[str, ...]]:
    spent = validation_flops(rungs)
    if spent is None:
        return ()
    parts = (Part(name="validation", flops=sum(flops for flops, _ in spent.values()), kind="cold"),)
    row = _totals_row(Count(title="", parts=parts), counts[0], counts[-1], flop_unit(rungs))
    return (("validation on top, counted in none of these", *row[1:]),)


def validation_flops(rungs: Sequence[Rung]) -> dict[str, tuple[float, float]] | None:
    """Add up what validating took.

    Args:
        rungs: The finished rungs.

    Returns:
        FLOPs of validation and of the training along which it was done, for `grown` models and for those `from
        scratch`; None where a record, being older, does not say.
    """
    sums = {"grown": (0.0, 0.0), "from scratch": (0.0, 0.0)}
    for rung in rungs:
        side = "grown" if rung.grown else "from scratch"
        runs = [] if rung.origin is not None else [(side, rung.evaluation_flops, rung.train_flops)]
        if rung.cold is not None:
            runs.append(("from scratch", rung.cold.evaluation_flops, rung.cold.flops))
        for name, validating, training in runs:
            if validating is None:
                return None
            sums[name] = (sums[name][0] + validating, sums[name][1] + training)
    return {name: pair for name, pair in sums.items() if pair[1]}


def _totals_row(count: Count, all_cold: Count, last_alone: Count, unit: FlopUnit) -> tuple[str, ...]:
    if count.flops is None or not all_cold.flops or not last_alone.flops:
        return (count.title, NOTHING, NOTHING, NOTHING)
    bound = AT_LEAST if count.at_least else ""
    return (
        count.title,
        bound + unit.number(count.flops) + (PLANNED if count.planned else ""),
        NOTHING
        if all_cold.at_least
        else bound + percent(count.flops / all_cold.flops) + (PLANNED if all_cold.planned else ""),
        bound + f"{count.flops / last_alone.flops:.2f} ×" + (PLANNED if count.planned or last_alone.planned else ""),
    )


def core_table(rungs: Sequence[Rung]) -> Table | None:
    """Lay out what the rungs reach on CORE, with standard errors.

    Args:
        rungs: The finished rungs, from the smallest.

    Returns:
        A row for the score, under the name that may be claimed for it, and one per task, both as centred accuracy;
        None if no rung was evaluated.
    """
    scores = [rung.core for rung in rungs if rung.core is not None]
    if not scores:
        return None
    names = dict.fromkeys(score.name for score in scores)
    labels = dict.fromkeys(label for score in scores for label in score.tasks)
    rows = []
    for name in names:
        known = [rung.core if rung.core and rung.core.name == name else None for rung in rungs]
        cells = (NOTHING if core is None else _with_error(core.score, core.standard_error) for core in known)
        rows.append((name, *cells))
    for label in labels:
        found = [None if rung.core is None else rung.core.tasks.get(label) for rung in rungs]
        rows.append((label, *(NOTHING if pair is None else _with_error(*pair) for pair in found)))
    return Table(groups=(), header=("centred accuracy", *(rung.name for rung in rungs)), rows=tuple(rows))


def _with_error(value: float, standard_error: float) -> str:
    return minus(f"{value:.3f} ± {standard_error:.3f}")


def table_notes(rungs: Sequence[Rung]) -> list[str]:
    """Return what must be said under the table.

    Args:
        rungs: The finished rungs.

    Returns:
        Sentences: the unit, what is planned, and from where on data repeat.
    """
    notes = [f"{flop_unit(rungs).definition}; those of Fisher and subspace are counted."]
    planned = [rung.name for rung in rungs if rung.cold_is_planned]
    if planned:
        notes.append(f"{PLANNED} planned: no baseline of {', '.join(planned)} has been trained here.")
    spent = validation_flops(rungs)
    if spent:
        validating, training = (sum(pair[i] for pair in spent.values()) for i in (0, 1))
        sides = ", ".join(f"{_one_decimal(a / b)} on models {name}" for name, (a, b) in spent.items())
        notes.append(
            f"Validation, {_one_decimal(validating / training)} on top of all training ({sides}), is not counted on"
            f" either side."
        )
    taken = [origin_note(rung) for rung in rungs if rung.origin is not None]
    return [*notes, *taken, data_repetition(rungs)]


def _one_decimal(share: float) -> str:
    return f"{100 * share:.1f} %"


def origin_note(rung: Rung) -> str:
    """Say where a rung was taken from, and how much of what went into it is counted.

    Args:
        rung: A rung that was not trained here.

    Returns:
        A sentence or two.
    """
    assert rung.origin is not None
    origin, unit = rung.origin, FlopUnit.for_values([rung.origin.flops])
    where = origin.name if origin.commit is None else f"{origin.name} at {origin.commit[:12]}"
    taken = f"{rung.name} was not trained here but taken from {where}"
    if not origin.flops:
        return (
            f"{taken}. What went into it is not recorded: its FLOPs count as 0, and no η can be stated on top of it."
        )
    if not origin.is_complete:
        return (
            f"{taken}. {unit.text(origin.flops)} that went into it are recorded; what its first ancestor took is not."
        )
    return f"{taken}; all {unit.text(origin.flops)} that went into it count as its cost."


def data_repetition(rungs: Sequence[Rung]) -> str:
    """Say from which epoch on data repeat.

    Args:
        rungs: The finished rungs.

    Returns:
        A sentence.
    """
    unknown = [rung.name for rung in rungs if rung.origin is not None and rung.data.source == "unknown"]
    for rung in rungs:
        token = rung.data.repeats_from_token
        if token is not None:
            epoch = max(rung.data.first_epoch, 1) + 1  # people count epochs from 1; data first repeat in the second
            where = "the first token" if token == 0 else f"token {count(token)}"
            return f"Data repeat from {where} of {rung.name} on, in epoch {epoch} of the corpus."
    if unknown:
        return f"No rung trained on a block twice that was read here; what {unknown[0]} had read before is not known."
    return "No rung trained on a block of the corpus that it or an earlier rung had read."


def results_table(rungs: Sequence[Rung]) -> str:
    """Return the results for the terminal.

    Args:
        rungs: The finished rungs, from the smallest; at least one.

    Returns:
        Plain text: a row per rung, the family's totals, and what must be said about both.
    """
    tables = [table.plain() for table in (rung_table(rungs), totals_table(rungs), core_table(rungs)) if table]
    return "\n\n".join([*tables, "\n".join(table_notes(rungs))])


def results_markdown(rungs: Sequence[Rung]) -> str:
    """Return the results in Markdown.

    Args:
        rungs: The finished rungs, from the smallest; at least one.

    Returns:
        The same tables and sentences as `results_table`.
    """
    tables = [table.markdown() for table in (rung_table(rungs), totals_table(rungs), core_table(rungs)) if table]
    notes = "\n".join(f"- {escape_markdown(note)}" for note in table_notes(rungs))
    return "\n\n".join([*tables, notes])
