"""Which versions of torch zc is for."""

import torch

from zc.errors import CaptureError

SUPPORTED = ((2, 11), (2, 15))


def torch_version() -> tuple[int, int]:
    """Major and minor version of the installed torch."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def check_version() -> None:
    """Refuse a torch that zc was never tried on.

    Raises:
        CaptureError: naming the installed and the supported versions.
    """
    lowest, highest = SUPPORTED
    if not lowest <= torch_version() <= highest:
        raise CaptureError(
            f"torch {torch.__version__} is not supported; install torch "
            f"{lowest[0]}.{lowest[1]} to {highest[0]}.{highest[1]}"
        )
