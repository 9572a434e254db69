"""State dicts: full and sharded, in memory and on disk, at the same and at another world size."""

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from multiprocess import run_ranks
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor

from zc.errors import ShardError
from zc.state.checkpoint import full_state_dict, load_full_state_dict
from zc.state.materialize import materialize
from zc.state.shard import shard
from zc.state.spec import spec_of


class Tied(nn.Module):
    """Tied, uneven, transposed, tiny and 0-d parameters; buffers, one of them not persistent."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(37, 8)
        self.head = nn.Linear(8, 37, bias=False)
        self.head.weight = self.embed.weight
        self.wide = nn.Linear(64, 1)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("scratch", torch.ones(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(x))) * self.scale


def expected() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return Tied().state_dict()


def blank(world_is_meta: bool = False) -> nn.Module:
    if not world_is_meta:
        return shard(Tied())
    with torch.device("meta"):
        model = Tied()
    return shard(model)


def assert_filled(model: nn.Module, rank: int, tied: bool = True) -> None:
    full = full_state_dict(model)
    wanted = expected()
    assert list(full) == (list(wanted) if rank == 0 else [])
    for name, value in full.items():
        assert type(value) is torch.Tensor
        assert torch.equal(value, wanted[name]), name
    if rank == 0 and tied:
        assert full["head.weight"] is full["embed.weight"]


def check_full(rank: int, world: int, folder: str) -> None:
    model = blank()
    load_full_state_dict(model, expected())
    assert_filled(model, rank)
    for file in ("model.safetensors", "model.pt", "parts/model.safetensors.index.json"):
        model = blank()
        load_full_state_dict(model, Path(folder, file), strict=True)
        assert_filled(model, rank)


def check_meta(rank: int, world: int, folder: str) -> None:
    model = blank(world_is_meta=True)
    assert all(p.is_meta for p in model.parameters())
    with pytest.raises(ShardError) as caught:
        load_full_state_dict(model, expected())
    assert str(caught.value) == (
        "'scale' is on meta; call zc.materialize(model, device) before loading"
    )
    with pytest.raises(ShardError) as caught:
        full_state_dict(model)
    assert str(caught.value) == "'scale' is on meta and has no values; call zc.materialize first"
    before = model.embed.weight
    assert materialize(model, "cpu") is model
    assert model.embed.weight is model.head.weight is not before
    local = model.embed.weight.to_local()
    assert local.untyped_storage().nbytes() == spec_of(model.embed.weight).layout.storage_numel * 4
    load_full_state_dict(model, f"{folder}/model.safetensors")
    assert_filled(model, rank)
    with pytest.raises(ShardError) as caught:
        torch.optim.SGD([before]).step()
    assert str(caught.value) == (
        "SGD holds 'embed.weight' as it was before zc.shard and would train nothing; build the "
        "optimizer after zc.shard and zc.materialize"
    )


def check_names(rank: int, world: int) -> None:
    model = blank()
    values = expected()
    del values["head.weight"]  # a tie: the other name is enough
    load_full_state_dict(model, values)
    assert_filled(model, rank)
    cases = [
        (
            {"scale"},
            {},
            "the checkpoint lacks 'scale'; pass strict=False to leave them as they are",
        ),
        (
            set(),
            {"extra": torch.ones(1)},
            "the checkpoint has 'extra', which the model lacks; pass strict=False to ignore them",
        ),
        (
            set(),
            {"wide.weight": torch.ones(2, 64)},
            "'wide.weight' is [2, 64] in the checkpoint and [1, 64] in the model",
        ),
        (
            {"wide.weight", "wide.bias", "scale", "norm.weight", "norm.bias", "norm.running_mean"},
            {},
            "the checkpoint lacks 'scale', 'wide.weight', 'wide.bias', 'norm.weight', 'norm.bias' "
            "and 1 more; pass strict=False to leave them as they are",
        ),
    ]
    for dropped, added, message in cases:
        source = {k: v for k, v in expected().items() if k not in dropped} | added
        with pytest.raises(ShardError) as caught:
            load_full_state_dict(model, source)
        assert str(caught.value) == message
    load_full_state_dict(model, {"other": torch.ones(1)}, strict=False)
    assert_filled(model, rank)


def check_saving(rank: int, world: int, folder: str) -> None:
    check_full(rank, world, folder)
    check_meta(rank, world, folder)
    check_names(rank, world)
    model = blank()
    load_full_state_dict(model, expected())
    state = model.state_dict()
    assert list(state) == list(expected())
    assert isinstance(state["embed.weight"], DTensor)
    copied = blank()
    copied.load_state_dict(state)
    assert_filled(copied, rank)
    copied = blank()
    copied.load_state_dict(state, assign=True)
    assert_filled(copied, rank, tied=False)  # assigning breaks ties in any model
    dcp.save(state, checkpoint_id=f"{folder}/dcp")


def check_loading(rank: int, world: int, folder: str) -> None:
    model = blank()
    dcp.load(model.state_dict(), checkpoint_id=f"{folder}/dcp")
    assert_filled(model, rank)


def test_round_trips(tmp_path):
    values = {name: value.clone() for name, value in expected().items()}
    torch.save(values, tmp_path / "model.pt")
    save_file(values, tmp_path / "model.safetensors")
    write_parts(values, tmp_path / "parts")
    run_ranks(check_saving, 2, str(tmp_path))
    run_ranks(check_loading, 4, str(tmp_path))


def write_parts(values: dict[str, torch.Tensor], folder: Path) -> None:
    folder.mkdir()
    names = list(values)
    index = {}
    for part, keys in enumerate((names[:3], names[3:])):
        save_file({k: values[k] for k in keys}, folder / f"{part}.safetensors")
        index |= dict.fromkeys(keys, f"{part}.safetensors")
    Path(folder, "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def test_files_that_cannot_be_read(tmp_path):
    model = shard(nn.Linear(2, 2))
    missing, unknown = tmp_path / "none.safetensors", tmp_path / "model.txt"
    unknown.write_text("")
    for path, message in (
        (missing, f"{missing}: no such file; pass"),
        (unknown, f"{unknown}: unknown kind of checkpoint; pass"),
    ):
        with pytest.raises(ShardError) as caught:
            load_full_state_dict(model, path)
        assert str(caught.value) == (
            f"{message} a .safetensors, .safetensors.index.json or .pt file"
        )


def test_one_process():
    model = shard(Tied(), param_dtype=torch.bfloat16)
    load_full_state_dict(model, expected())
    assert type(model.embed.weight) is nn.Parameter
    full = full_state_dict(model)
    assert all(torch.equal(full[name], value) for name, value in expected().items())
    assert model(torch.arange(4)).dtype == torch.bfloat16


def test_safetensors_is_an_extra(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2, 2)}, path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ShardError) as caught:
        load_full_state_dict(shard(nn.Linear(2, 2, bias=False)), path)
    assert str(caught.value) == f"{path}: reading it needs the package safetensors; install it"
