"""The figures of a dump: what each pass did to a program, and what the finished program costs.

stages = [describe(program, 0, "capture", changed=True, seconds=0.0)]
...                                                  # one more after each pass
report = build_report(program, stages, pipeline_text)
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import fx

from zc.debug.curve import memory_curve, peaks_by_phase
from zc.debug.schema import (
    VERSION,
    CollectiveRow,
    CurvePoint,
    LiveRow,
    Memory,
    ParameterRow,
    PassReport,
    Peak,
    Report,
    Totals,
    Traffic,
)
from zc.debug.timeline import lane_timeline, timing
from zc.program.collectives import Collective, collectives_of
from zc.program.nodes import input_of, tensors_of, value_of
from zc.program.pass_base import Pass
from zc.program.printer import print_arg, print_target, print_type
from zc.program.program import Program
from zc.program.stamps import PHASES, stamp_of
from zc.program.tables import Param

_OPS = {"placeholder": "input", "get_attr": "constant", "output": "return"}


def describe(
    program: Program,
    index: int,
    applied: Pass | None,
    *,
    changed: bool,
    seconds: float,
    fused: bool = True,
    notes: Sequence[str] = (),
) -> PassReport:
    """The figures of ``program`` after pass number ``index``; no pass stands for capture.

    ``seconds`` is what the pass took, ``fused`` says whether regions will be compiled.
    """
    nodes = Counter(op_name(node) for node in program.nodes())
    return {
        "index": index,
        "name": applied.name if applied else "capture",
        "kind": applied.kind if applied else "capture",
        "options": _options(applied),
        "changed": changed,
        "notes": list(notes),
        "milliseconds": round(seconds * 1000, 3),
        "node_count": nodes.total(),
        "nodes": dict(sorted(nodes.items())),
        "collectives": collective_rows(program),
        "peak_bytes": peaks_by_phase(program),
        "timing": timing(program, fused),
    }


def build_report(
    program: Program, passes: list[PassReport], pipeline: str, *, fused: bool = True
) -> Report:
    """The report on the finished ``program``, which ``passes`` led to."""
    return {
        "version": VERSION,
        "program": program.name,
        "level": program.level,
        "training": program.training,
        "mesh": [{"name": name, "size": size} for name, size in program.mesh.axes],
        "world": math.prod(size for _, size in program.mesh.axes),
        "pipeline": pipeline,
        "passes": passes,
        "totals": totals(program),
        "memory": memory(program),
        "timeline": lane_timeline(program, fused),
        "parameters": [parameter_row(param) for param in program.params.values()],
    }


def op_name(node: fx.Node) -> str:
    """The op of ``node`` as printed; ``input``, ``constant`` or ``return`` for other nodes."""
    return print_target(node.target) if node.op == "call_function" else _OPS[node.op]


def collective_rows(program: Program) -> list[CollectiveRow]:
    """The collectives of ``program``, those of one kind in one row, in the order of first use."""
    rows: dict[tuple[Any, ...], CollectiveRow] = {}
    for found in collectives_of(program):
        dtype = _dtype(found.node)
        key = (found.spec.op, found.stamp.phase, found.axis, found.group_size, dtype)
        row = rows.setdefault(key, _empty_row(found, dtype))
        row["count"] += found.times
        row["payload_bytes"] += found.times * found.payload_bytes
        row["wire_bytes"] += found.times * found.wire_bytes
    return list(rows.values())


def parameter_row(param: Param) -> ParameterRow:
    """One row of the parameter table."""
    itemsize = param.dtype.itemsize
    return {
        "name": param.name,
        "shape": list(param.shape),
        "dtype": print_arg(param.dtype),
        "compute_dtype": print_arg(param.compute_dtype),
        "reduce_dtype": print_arg(param.reduce_dtype),
        "shards": {axis: layout.dim for axis, layout in param.layouts.items()},
        "rest_bytes": _rest_numel(param) * itemsize,
        "padding_bytes": _padding_numel(param) * itemsize,
        "ties": list(param.ties),
        "trainable": param.trainable,
        "residence": param.residence,
    }


def totals(program: Program) -> Totals:
    """Sums over parameters and collectives."""
    params = list(program.params.values())
    full = sum(_numel(p) * p.dtype.itemsize for p in params)
    compute = sum(_numel(p) * p.compute_dtype.itemsize for p in params)
    replicated = [p for p in params if is_replicated(p)]
    replicated_bytes = sum(_numel(p) * p.dtype.itemsize for p in replicated)
    return {
        "parameters": sum(map(_numel, params)),
        "trainable_parameters": sum(_numel(p) for p in params if p.trainable),
        "compute_bytes": compute,
        "full_bytes": full,
        "rest_bytes": sum(_rest_numel(p) * p.dtype.itemsize for p in params),
        "padding_bytes": sum(_padding_numel(p) * p.dtype.itemsize for p in params),
        "replicated": [p.name for p in replicated],
        "replicated_bytes": replicated_bytes,
        "replicated_share": round(replicated_bytes / full, 6) if full else 0.0,
        "traffic": _traffic(collective_rows(program), compute),
    }


def memory(program: Program) -> Memory:
    """Live bytes over the program, and what is live at the peak."""
    curve = memory_curve(program)
    points: list[CurvePoint] = [
        {
            "index": index,
            "bytes": point.live_bytes,
            "phase": stamp_of(point.node).phase,
            "node": point.node.name,
            "op": op_name(point.node),
        }
        for index, point in curve.points
    ]
    if curve.peak is None:
        return {"input_bytes": curve.input_bytes, "points": [], "peak": None}
    index, top = curve.peak
    stamp = stamp_of(top.node)
    peak: Peak = {
        "index": index,
        "node": top.node.name,
        "op": op_name(top.node),
        "phase": stamp.phase,
        "module": stamp.module,
        "live_bytes": top.live_bytes,
        "values": [_live_row(*value) for value in curve.at_peak],
    }
    return {"input_bytes": curve.input_bytes, "points": points, "peak": peak}


def is_replicated(param: Param) -> bool:
    """True for a parameter that every rank keeps whole although there are several ranks."""
    layouts = param.layouts.values()
    return any(x.world > 1 for x in layouts) and all(x.replicated for x in layouts)


def _options(applied: Pass | None) -> dict[str, str]:
    if applied is None:
        return {}
    return {f.name: str(getattr(applied, f.name)) for f in fields(applied)}


def _empty_row(found: Collective, dtype: str) -> CollectiveRow:
    return {
        "op": found.spec.op,
        "phase": found.stamp.phase,
        "axis": found.axis,
        "group_size": found.group_size,
        "dtype": dtype,
        "count": 0,
        "payload_bytes": 0,
        "wire_bytes": 0,
    }


def _dtype(node: fx.Node) -> str:
    operands = [tensor for source in node.all_input_nodes for tensor in tensors_of(source)]
    return print_arg(operands[0].dtype) if operands else "none"


def _traffic(rows: list[CollectiveRow], compute_bytes: int) -> dict[str, Traffic]:
    found: dict[str, Traffic] = {}
    for phase in PHASES:
        mine = [row for row in rows if row["phase"] == phase]
        payload = sum(row["payload_bytes"] for row in mine)
        found[phase] = {
            "count": sum(row["count"] for row in mine),
            "payload_bytes": payload,
            "wire_bytes": sum(row["wire_bytes"] for row in mine),
            "payload_multiple": round(payload / compute_bytes, 4) if compute_bytes else 0.0,
        }
    return found


def _live_row(node: fx.Node, count: int) -> LiveRow:
    stamp = stamp_of(node)
    return {
        "node": node.name,
        "kind": input_of(node).kind if node.op == "placeholder" else op_name(node),
        "type": print_type(value_of(node)),
        "bytes": count,
        "phase": "input" if node.op == "placeholder" else stamp.phase,
        "module": stamp.module,
        "source": stamp.source,
    }


def _numel(param: Param) -> int:
    return math.prod(param.shape)


def _rest_numel(param: Param) -> int:
    return min((x.storage_numel for x in param.layouts.values()), default=_numel(param))


def _padding_numel(param: Param) -> int:
    extra = [
        x.storage_numel * x.world - _numel(param)
        for x in param.layouts.values()
        if not x.replicated
    ]
    return max(extra, default=0)
