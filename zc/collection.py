"""Python's search for cycles of dead objects, put off while a program is rewritten.

with put_off():
    ...                         # makes many objects that live on; each search would look at all

A search looks at every object of the process, torch's own included, and a pass pipeline makes
enough of them to set off hundreds of searches that find next to nothing.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def put_off() -> Iterator[None]:
    """No search for cycles inside; what has piled up is found by the next one behind it."""
    searching = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searching:
            gc.enable()
