"""Where torch finds the ``zero`` backend by name; looking it up sets what Dynamo needs."""

from zc import torch_private
from zc.backend import zero
from zc.optimizer_step import watch_steps

torch_private.configure_dynamo()
watch_steps()

__all__ = ["zero"]
