"""Tables of the report page: sorted by a click on a column's head, filtered by a search box."""

from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Cell:
    """What a cell shows; ``key`` is the number that it sorts by, if it is one."""

    text: str
    key: int | None = None


def table(name: str, head: list[str], rows: list[list[Cell]], *, searchable: bool = False) -> str:
    """HTML of a table with the id ``name``."""
    numeric = [bool(rows) and rows[0][i].key is not None for i in range(len(head))]
    titles = "".join(f"<th{_class(n)}>{escape(t)}</th>" for t, n in zip(head, numeric, strict=True))
    body = "\n".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    search = f'<input type="search" placeholder="filter" data-table="{name}">\n'
    return (
        f'{search if searchable else ""}<div class="scroll"><table class="sortable" id="{name}">\n'
        f"<thead><tr>{titles}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"
    )


def _cell(cell: Cell) -> str:
    if cell.key is None:
        return f"<td>{escape(cell.text)}</td>"
    return f'<td class="number" data-key="{cell.key}">{escape(cell.text)}</td>'


def _class(numeric: bool) -> str:
    return ' class="number"' if numeric else ""
