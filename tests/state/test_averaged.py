"""Gradients of unsharded parameters that no program averages are refused at the step."""

import pytest
import torch
from torch import nn

from zc.errors import ShardError
from zc.state.averaged import check_averaged, mark_averaged


def test_gradient_outside_compiled_code_is_refused() -> None:
    inside, outside = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([inside, outside], 0.1)
    mark_averaged([inside])
    inside.grad = torch.ones(2)
    check_averaged(optimizer)
    outside.grad = torch.ones(3)
    with pytest.raises(ShardError) as error:
        optimizer.step()
    assert str(error.value) == (
        "parameter 1 of group 0 of SGD, shape [3], got its gradient outside compiled code, where "
        "it is not averaged over ranks; remove the graph break (TORCH_LOGS=graph_breaks shows it), "
        "or call zc.shard(model), which averages in eager code too"
    )


def test_optimizers_of_other_models_are_left_alone() -> None:
    param = nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    check_averaged(torch.optim.SGD([param], 0.1))
