"""DeepSpeed's ZeRO-1, 2 and 3, from the package deepspeed, on CPUs.

Its options are its defaults, but for the size of its buckets and that it does not clip gradients,
and the optimizer is torch's fused AdamW. It wants the variables that a launcher sets. By default it
builds a kernel for shared memory with a C++ compiler, which training does not use; not here.
"""

import logging
import os
from typing import Any
from unittest.mock import patch

import torch
from systems import GPT, Builder, Trained, adamw

DEFAULT_BUCKET = 500_000_000  # elements


def _zero(stage: int) -> Builder:
    def build(model: GPT, executor: str) -> Trained:
        deepspeed = _imported()
        settings = {
            "train_micro_batch_size_per_gpu": 1,  # not read: batches come from outside
            "zero_optimization": {"stage": stage, **_buckets(model)},
            "gradient_clipping": 0.0,  # 1.0 by default; no other system clips
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        engine, *_ = deepspeed.initialize(model=model, optimizer=adamw(model), config=settings)

        def step(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            loss = engine(tokens, targets)
            engine.backward(loss)
            engine.step()
            return loss.detach()

        return Trained(engine, step)

    return build


def _buckets(model: GPT) -> dict[str, int]:
    """One bucket, as by default, but not the 500 million elements that it would allocate."""
    size = min(sum(p.numel() for p in model.parameters()), DEFAULT_BUCKET)
    return {"reduce_bucket_size": size, "allgather_bucket_size": size}


def _imported() -> Any:
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    os.environ |= {
        "DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0", "RANK": str(rank), "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size), "LOCAL_SIZE": str(size),
    }  # fmt: skip
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    with patch("deepspeed.comm.torch.build_shm_op", lambda: None):
        deepspeed.init_distributed("gloo", dist_init_required=False)
    return deepspeed


SYSTEMS: dict[str, Builder] = {f"DeepSpeed ZeRO-{stage}": _zero(stage) for stage in (1, 2, 3)}
