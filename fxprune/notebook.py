"""How objects show themselves in a notebook: a line, a table of a few rows, and some more lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from fxprune.errors import printable

ROWS = 40  # of a table; of more, these and how many are left out
LEFT, RIGHT = "text-align:left", "text-align:right"


def shown(title: str, header: Sequence[str], rows: Sequence[Sequence[object]], notes: Iterable[str] = ()) -> str:
    """HTML; the first column stands left, the others right.

    >>> shown("two < three", ["name", "n"], [["a", 2]])[:33]
    '<p><b>two &lt; three</b></p><tabl'
    """
    head = "".join(f'<th style="{RIGHT if i else LEFT}">{_text(name)}</th>' for i, name in enumerate(header))
    body = "".join(
        "<tr>" + "".join(f'<td style="{RIGHT if i else LEFT}">{_text(c)}</td>' for i, c in enumerate(row)) + "</tr>"
        for row in rows[:ROWS]
    )
    notes = [*([f"... and {len(rows) - ROWS} more"] if len(rows) > ROWS else []), *notes]
    below = "".join(f"<div>{_text(note)}</div>" for note in notes)
    return f"<p><b>{_text(title)}</b></p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"


def _text(value: object) -> str:
    return escape(printable(str(value)))
