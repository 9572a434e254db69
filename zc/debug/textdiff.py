"""Unified diffs of printed IR in near-linear time.

Nearly every line of printed IR is unique: it defines a name. So the lines that stand once in both
texts are matched first, the longest run of them that is in the same order in both is kept (Bram
Cohen's patience diff), and only equal lines beside those are added.
"""

import difflib
from bisect import bisect_left
from collections import Counter


def diff_texts(before: str, after: str, before_name: str, after_name: str) -> str:
    """Unified diff with three lines of context; empty for equal texts."""
    old, new = before.splitlines(), after.splitlines()
    if old == new:
        return ""
    lines = [f"--- {before_name}", f"+++ {after_name}"]
    for hunk in _Matcher(old, new).get_grouped_opcodes(3):
        lines.append(_hunk_head(hunk))
        for tag, i, i_end, j, j_end in hunk:
            if tag == "equal":
                lines += [" " + line for line in old[i:i_end]]
                continue
            lines += ["-" + line for line in old[i:i_end]]
            lines += ["+" + line for line in new[j:j_end]]
    return "\n".join(lines) + "\n"


class _Matcher(difflib.SequenceMatcher[str]):
    """The standard matcher with matching blocks found by unique lines."""

    def __init__(self, old: list[str], new: list[str]) -> None:
        super().__init__(None, old, new, autojunk=False)
        self.old, self.new = old, new

    def get_matching_blocks(self) -> list[difflib.Match]:
        pairs = _extend(_anchors(self.old, self.new), self.old, self.new)
        blocks: list[difflib.Match] = []
        for i, j in pairs:
            last = blocks[-1] if blocks else None
            if last and (last.a + last.size, last.b + last.size) == (i, j):
                blocks[-1] = difflib.Match(last.a, last.b, last.size + 1)
            else:
                blocks.append(difflib.Match(i, j, 1))
        return [*blocks, difflib.Match(len(self.old), len(self.new), 0)]


def _anchors(old: list[str], new: list[str]) -> list[tuple[int, int]]:
    """Positions of lines that are unique in both, as many as are in the same order in both."""
    in_old, in_new = Counter(old), Counter(new)
    place = {line: j for j, line in enumerate(new) if in_new[line] == 1 == in_old[line]}
    pairs = [(i, place[line]) for i, line in enumerate(old) if line in place]
    tops: list[int] = []  # smallest end of an increasing run of each length
    rows: list[int] = []  # which pair that end is
    before: list[int] = []
    for row, (_, j) in enumerate(pairs):
        length = bisect_left(tops, j)
        before.append(rows[length - 1] if length else -1)
        tops[length : length + 1] = [j]
        rows[length : length + 1] = [row]
    run, row = [], rows[-1] if rows else -1
    while row >= 0:
        run.append(pairs[row])
        row = before[row]
    return run[::-1]


def _extend(
    anchors: list[tuple[int, int]], old: list[str], new: list[str]
) -> list[tuple[int, int]]:
    """Add the equal lines next to anchors, and at both ends of the texts."""
    pairs: list[tuple[int, int]] = []
    i = j = 0
    for i_end, j_end in [*anchors, (len(old), len(new))]:
        while i < i_end and j < j_end and old[i] == new[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        tail = 0
        while (
            i_end - tail > i and j_end - tail > j and old[i_end - tail - 1] == new[j_end - tail - 1]
        ):
            tail += 1
        pairs += [(i_end - k, j_end - k) for k in range(tail, 0, -1)]
        if i_end < len(old):
            pairs.append((i_end, j_end))
        i, j = i_end + 1, j_end + 1
    return pairs


def _hunk_head(hunk: list[tuple[str, int, int, int, int]]) -> str:
    first, last = hunk[0], hunk[-1]
    old, new = _range(first[1], last[2]), _range(first[3], last[4])
    return f"@@ -{old} +{new} @@"


def _range(start: int, end: int) -> str:
    length = end - start
    if length == 1:
        return str(start + 1)
    return f"{start + 1 if length else start},{length}"
