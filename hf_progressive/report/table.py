"""A table of text: its cells once, written as plain text, Markdown or HTML."""

import dataclasses
import html
from collections.abc import Sequence
from dataclasses import dataclass

_SPANNING = ' class="spanning"'


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text; the first column names the row."""

    header: tuple[str, ...]
    """Column titles."""

    rows: tuple[tuple[str, ...], ...]
    """Cells."""

    groups: tuple[tuple[str, int], ...] = ()
    """What stands over the header: titles and how many columns each spans; over a single one, its first words."""

    numbers: bool = True
    """Whether all columns but the first hold numbers, which stand flush right."""

    def without(self, title: str) -> "Table":
        """Return the table without the column of a title, the last one where several have it."""
        place = len(self.header) - 1 - self.header[::-1].index(title)
        groups, first = [], 0
        for words, size in self.groups:
            kept = size - (first <= place < first + size)
            groups += [(words, kept)] if kept else []
            first += size
        rows = tuple((*row[:place], *row[place + 1 :]) for row in self.rows)
        header = (*self.header[:place], *self.header[place + 1 :])
        return dataclasses.replace(self, header=header, rows=rows, groups=tuple(groups))

    def plain(self) -> str:
        """Return lines of aligned columns, for a terminal."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = [_aligned(cells, widths) for cells in (self.header, *self.rows)]
        if self.groups:
            lines.insert(0, self._group_line(widths))
        return "\n".join(lines)

    def _group_line(self, widths: Sequence[int]) -> str:
        parts, first = [], 0
        for title, span in self.groups:
            width = sum(widths[first : first + span]) + 2 * (span - 1)
            parts.append(f" {title} ".center(width, "─") if title and span > 1 else f"{title:>{width}}")
            first += span
        return "  ".join(parts).rstrip()

    def markdown(self, *, escape: bool = True) -> str:
        """Return a pipe table, with the groups written into the column titles; cells are Markdown unless `escape`."""
        over = [f"{title}:" if span > 1 and title else title for title, span in self.groups for _ in range(span)]
        pairs = zip(over or [""] * len(self.header), self.header, strict=True)
        rows = [[f"{words} {title}".strip() for words, title in pairs], *self.rows]
        cells = [[escape_markdown(cell) if escape else cell for cell in row] for row in rows]
        cells.insert(1, ["---", *["---:" if self.numbers else "---"] * (len(self.header) - 1)])
        return "\n".join(f"| {' | '.join(row)} |" for row in cells)

    def html(self, caption: str = "") -> str:
        """Return an HTML element, with a caption for those who hear it; a group over several columns is `spanning`."""
        groups = "".join(
            f'<th colspan="{span}" scope="colgroup"{_SPANNING if span > 1 else ""}>{html.escape(title)}</th>'
            if title
            else f'<td colspan="{span}"></td>'
            for title, span in self.groups
        )
        head = [f'<tr class="groups">{groups}</tr>'] if groups else []
        titles = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in self.header)
        head.append(f"<tr>{titles}</tr>")
        body = (
            f'<tr><th scope="row">{html.escape(first)}</th>'
            f"{''.join(f'<td>{html.escape(cell)}</td>' for cell in others)}</tr>"
            for first, *others in self.rows
        )
        kind = "" if self.numbers else ' class="words"'
        named = [f'<caption class="heard">{html.escape(caption)}</caption>'] if caption else []
        return "\n".join(
            [f"<table{kind}>", *named, "<thead>", *head, "</thead>", "<tbody>", *body, "</tbody>", "</table>"]
        )


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    _, *numbers = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return "  ".join([f"{cells[0]:<{widths[0]}}", *numbers]).rstrip()


def escape_markdown(text: str) -> str:
    r"""Escape what Markdown, or HTML inside it, would take for markup, and write it on one line.

    >>> escape_markdown("a|b<c>_d_")
    'a\\|b\\<c\\>\\_d\\_'
    """
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>|#!~&$" else char for char in " ".join(text.split()))
