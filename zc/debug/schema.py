"""What ``report.json`` holds: one class per JSON object, checked by ``problems``.

Bytes are bytes, of one rank unless said otherwise; sizes that are symbols count as seen at capture.
Everything but ``milliseconds`` is the same in every run.
"""

from typing import Any, TypedDict, get_args, get_origin, get_type_hints, is_typeddict

VERSION = 2


class CollectiveRow(TypedDict):
    """All collectives of one kind; what a loop over micro-batches calls counts once a turn.

    ``payload_bytes`` is the sum of the full tensors; ``wire_bytes`` is what each rank sends, by the
    ring formulas of ``zc.program.collectives``. ``dtype`` is that of the first operand.
    """

    op: str
    phase: str
    axis: str
    group_size: int
    dtype: str
    count: int
    payload_bytes: int
    wire_bytes: int


class Timing(TypedDict):
    """A step as simulated on the program's device (``zc.cost.simulate``), in seconds.

    ``seconds`` is the whole step, ``compute`` what the compute lane works undisturbed, ``exposed``
    what it stands still for collectives or is slowed by them. ``phases`` maps each phase to its
    time on the compute lane, ``lanes`` each lane to the time it is busy. A program whose
    collectives are still to be inserted has compute alone.
    """

    seconds: float
    compute: float
    exposed: float
    phases: dict[str, float]
    lanes: dict[str, float]


class PassReport(TypedDict):
    """The program after one pass; number 0 is the program as captured.

    ``peak_bytes`` maps each phase to its largest live bytes as predicted from types (0: no nodes).
    ``nodes`` counts the nodes of each op. ``options`` are the fields of the pass, as text.
    ``changed`` says whether the printed program is another one than before, ``notes`` what the pass
    has to say about it. ``timing`` is null for a program without a device.
    """

    index: int
    name: str
    kind: str
    options: dict[str, str]
    changed: bool
    notes: list[str]
    milliseconds: float
    node_count: int
    nodes: dict[str, int]
    collectives: list[CollectiveRow]
    peak_bytes: dict[str, int]
    timing: Timing | None


class ParameterRow(TypedDict):
    """One parameter. ``shards`` maps each axis to the sharded dimension, null for replicated.

    ``rest_bytes`` is what each rank stores, ``padding_bytes`` what of that, over all ranks of the
    axis, belongs to no element of the parameter.
    """

    name: str
    shape: list[int]
    dtype: str
    compute_dtype: str
    reduce_dtype: str
    shards: dict[str, int | None]
    rest_bytes: int
    padding_bytes: int
    ties: list[str]
    trainable: bool
    residence: str


class Traffic(TypedDict):
    """Collectives of one phase; ``payload_multiple`` is in multiples of ``compute_bytes``."""

    count: int
    payload_bytes: int
    wire_bytes: int
    payload_multiple: float


class Totals(TypedDict):
    """Sums over the finished program.

    ``parameters`` is the number of elements of all parameters (Psi in Rajbhandari et al.,
    1910.02054), ``compute_bytes`` their bytes in compute dtype, ``full_bytes`` in that at rest.
    ``replicated`` names the parameters that every rank keeps whole, ``replicated_share`` is their
    part of ``full_bytes``.
    """

    parameters: int
    trainable_parameters: int
    compute_bytes: int
    full_bytes: int
    rest_bytes: int
    padding_bytes: int
    replicated: list[str]
    replicated_bytes: int
    replicated_share: float
    traffic: dict[str, Traffic]


class LiveRow(TypedDict):
    """One value that is live at the peak; ``phase`` is where it was made."""

    node: str
    kind: str
    type: str
    bytes: int
    phase: str
    module: str
    source: str


class Peak(TypedDict):
    """The node with the most live bytes and the largest values that are live there."""

    index: int
    node: str
    op: str
    phase: str
    module: str
    live_bytes: int
    values: list[LiveRow]


class CurvePoint(TypedDict):
    """Live bytes while the node at position ``index`` of the program runs."""

    index: int
    bytes: int
    phase: str
    node: str
    op: str


class Memory(TypedDict):
    """Memory over the finished program; ``input_bytes`` is held by the caller throughout."""

    input_bytes: int
    points: list[CurvePoint]
    peak: Peak | None


class LaneSpan(TypedDict):
    """A lane at work from ``start`` to ``end``, in seconds; what comes without a gap is one span.

    ``node`` is the first node of ``count`` that the span is made of.
    """

    lane: str
    start: float
    end: float
    phase: str
    node: str
    count: int


class LaneTimeline(TypedDict):
    """The simulated step of the finished program on ``device``, by lane, in order of start."""

    device: str
    seconds: float
    spans: list[LaneSpan]


class MeshAxis(TypedDict):
    """One axis of the mesh."""

    name: str
    size: int


class Report(TypedDict):
    """The whole of ``report.json``."""

    version: int
    program: str
    level: int
    training: bool
    mesh: list[MeshAxis]
    world: int
    pipeline: str
    passes: list[PassReport]
    totals: Totals
    memory: Memory
    timeline: LaneTimeline | None
    parameters: list[ParameterRow]


def problems(value: Any, expected: Any = Report, where: str = "report") -> list[str]:
    """What in ``value`` is not as ``expected`` says, one line each; nothing for a good report."""
    if is_typeddict(expected):
        return _object_problems(value, get_type_hints(expected), where)
    origin, arguments = get_origin(expected), get_args(expected)
    if origin is list:
        if not isinstance(value, list):
            return [f"{where}: a list expected, got {value!r}"]
        return [p for i, v in enumerate(value) for p in problems(v, arguments[0], f"{where}[{i}]")]
    if origin is dict:
        if not isinstance(value, dict):
            return [f"{where}: an object expected, got {value!r}"]
        return [p for k, v in value.items() for p in problems(v, arguments[1], f"{where}.{k}")]
    if arguments:
        found = [problems(value, choice, where) for choice in arguments]
        return min(found, key=len)
    if type(value) is expected or (expected is float and type(value) is int):
        return []
    return [f"{where}: {expected.__name__} expected, got {value!r}"]


def _object_problems(value: Any, fields: dict[str, Any], where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where}: an object expected, got {value!r}"]
    missing = [f"{where}.{name}: missing" for name in fields if name not in value]
    unknown = [f"{where}.{name}: not in the schema" for name in value if name not in fields]
    wrong = [
        p for k, v in value.items() if k in fields for p in problems(v, fields[k], f"{where}.{k}")
    ]
    return missing + unknown + wrong
