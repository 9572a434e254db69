"""The README's excerpt of ``UPDATE.md``: nothing is measured here, rows are copied.

    python examples/benchmarks/excerpt.py     # after update.py --save ...

The excerpt stands between two comments, of which the first names the file that it comes from.
"""

import sys
from pathlib import Path

COLUMNS = ("tensors", "system", "ms", "ratio", "bytes")
BEGIN, END = "<!-- from examples/benchmarks/UPDATE.md -->\n", "<!-- end -->\n"
ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    readme, tables = ROOT / "README.md", Path(__file__).with_name("UPDATE.md")
    readme.write_text(refreshed(readme.read_text(), tables.read_text()))


def refreshed(page: str, tables: str) -> str:
    """``page`` with the excerpt of ``tables`` in the place of the one that it has."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"the page has no place for the excerpt: '{BEGIN.strip()}', then '{END.strip()}'")
    return before + begin + excerpt(tables) + end + after


def excerpt(tables: str) -> str:
    """The first table of ``tables``, a Markdown page, with ``COLUMNS`` alone."""
    head, _, *rows = _first_table(tables)
    places = [head.index(column) for column in COLUMNS]
    titles = [*COLUMNS[:-1], "bytes per parameter"]
    lines = [titles, ["---", "---", *["---:"] * 3], *([row[i] for i in places] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _first_table(page: str) -> list[list[str]]:
    table = page[page.index("\n|") + 1 :].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


if __name__ == "__main__":
    main()
