"""What programs keep of a parameter from one call to the next: its cast to the compute dtype."""

import torch

from zc.program.layout import Layout
from zc.program.packing import storage_of
from zc.state.reading import local_of
from zc.state.versions import version_of, watch_steps


class CastCell:
    """A late-bound cast of one parameter's shard, made anew where the parameter has changed.

    A loop that writes the parameter writes the cast too, and ``finished`` says so. Any other write
    is told by ``version_of``.

    Args:
        param: the parameter.
        layout: how it lies.
        dtype: of the cast.
    """

    def __init__(self, param: torch.Tensor, layout: Layout, dtype: torch.dtype) -> None:
        self._param, self._layout, self._dtype = param, layout, dtype
        self._cast: torch.Tensor | None = None
        self._made_from: tuple[int, ...] | None = None
        watch_steps()

    @property
    def value(self) -> torch.Tensor:
        """The cast, padded as the shard is."""
        if self._cast is None:
            self._cast = storage_of(self._shard(), self._layout).to(self._dtype)
        elif self._made_from != version_of(self._param):
            self._cast.copy_(storage_of(self._shard(), self._layout))
        self._made_from = None  # until the loop is through
        return self._cast

    def finished(self) -> None:
        """The loop that has read the cast has written it as well."""
        self._made_from = version_of(self._param)

    def _shard(self) -> torch.Tensor:
        return local_of(self._param).detach()
