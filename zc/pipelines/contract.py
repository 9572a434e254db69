"""What passes promise each other: each fact a pass requires must come from an earlier one."""

from zc.errors import PipelineError
from zc.program.pass_base import Pass


def check_order(passes: tuple[Pass, ...], places: tuple[str, ...] | None = None) -> None:
    """Check that ``passes`` fit together in this order; messages name ``places``.

    Raises:
        PipelineError: for a required pass that stands twice, or a fact that no earlier
            pass provides.
    """
    places = places or tuple(f"passes[{i}]" for i in range(len(passes)))
    provided: set[str] = set()
    first: dict[str, str] = {}
    for item, where in zip(passes, places, strict=True):
        if item.kind == "required" and item.name in first:
            raise PipelineError(
                f"{where}: '{item.name}' is a required pass and stands only once; "
                f"it is already at {first[item.name]}"
            )
        for fact in sorted(item.requires - provided):
            raise PipelineError(
                f"{where}: '{item.name}' needs {fact}, which no earlier pass provides"
            )
        provided |= item.provides
        first.setdefault(item.name, where)
