"""Where torch finds the ``zero`` backend by name; looking it up sets what Dynamo needs."""

from zc import torch_private
from zc.backend import zero

torch_private.configure_dynamo()

__all__ = ["zero"]
