"""Tables in device memory: made at once, or filled when a recording is through."""

import pytest
import torch
from zc.codegen.tables import filled_behind, table_of

CPU = torch.device("cpu")


def test_a_table_is_there_at_once():
    table = table_of([1, 2**40], torch.int64, CPU)
    assert table.dtype == torch.int64
    assert table.tolist() == [1, 2**40]


def test_tables_are_filled_behind_a_recording():
    with filled_behind() as waiting:
        table = table_of([0.1, 2.0], torch.float64, CPU).fill_(7.0)
        assert len(waiting) == 1
    assert table.tolist() == [0.1, 2.0]
    assert table_of([3.0], torch.float64, CPU).tolist() == [3.0]


def test_nothing_is_filled_behind_a_recording_that_fails():
    tables: list[torch.Tensor] = []
    with pytest.raises(RuntimeError, match="capture"):
        _fail(tables)
    assert tables[0].tolist() == [7.0]
    assert table_of([3.0], torch.float64, CPU).tolist() == [3.0]


def _fail(tables: list[torch.Tensor]) -> None:
    with filled_behind():
        tables.append(table_of([1.0], torch.float64, CPU).fill_(7.0))
        raise RuntimeError("capture")
