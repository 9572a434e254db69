"""Ranks that are threads of one process, for what needs a store and no collective."""

import threading
from collections.abc import Callable, Sequence
from typing import Any


def on_threads(here: threading.local, works: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each of ``works`` returns, in a thread of its own; ``here.rank`` is its number."""
    found: list[Any] = [None] * len(works)

    def work(rank: int) -> None:
        here.rank = rank
        found[rank] = works[rank]()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return found
