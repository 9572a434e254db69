"""Every use of private torch API, behind names of our own.

Nothing else in zc imports ``torch._dynamo``, ``torch._inductor``, ``torch._functorch``,
``torch._subclasses`` or ``torch.distributed._*``. Each function has a test in
``tests/test_torch_private*.py`` that names the torch versions it was tried on.
"""

from zc.torch_private.autograd import (
    backward_number,
    boxed,
    compile_for_autograd,
    dynamo_input_index,
    in_backward,
    is_backward,
    is_tangent,
    must_recompute,
    split_joint,
    tag_phase,
)
from zc.torch_private.dynamo import (
    backward_outside,
    backward_under_default_device,
    code_being_compiled,
    configure_dynamo,
    is_compiled_wrapper,
    never_compile_alone,
    outside_tracing,
    seconds_in_dynamo,
    source_expression,
    trace_again_if_needed,
    trace_backward,
)
from zc.torch_private.fakes import (
    fake_empty,
    fake_mode_of,
    fake_strided,
    has_symbols,
    is_composite,
    is_fake,
    known_value,
    without_fake_tensor_logs,
)
from zc.torch_private.frames import compiled_for, replace_frame
from zc.torch_private.gloo_threads import let_gloo_finish_at_exit
from zc.torch_private.inductor import (
    compile_region,
    cpp_compiler,
    has_cpp_compiler,
    inductor_counts,
    kernel_seconds,
)
from zc.torch_private.kernel_files import inductor_folder
from zc.torch_private.region_files import (
    compiler_fingerprint,
    load_region,
    region_bytes,
)
from zc.torch_private.versions import SUPPORTED, check_version, torch_version
from zc.torch_private.worlds import default_store, fake_world, group_seconds, without_memory

__all__ = [
    "SUPPORTED",
    "backward_number",
    "backward_outside",
    "backward_under_default_device",
    "boxed",
    "check_version",
    "code_being_compiled",
    "compile_for_autograd",
    "compile_region",
    "compiled_for",
    "compiler_fingerprint",
    "configure_dynamo",
    "cpp_compiler",
    "default_store",
    "dynamo_input_index",
    "fake_empty",
    "fake_mode_of",
    "fake_strided",
    "fake_world",
    "group_seconds",
    "has_cpp_compiler",
    "has_symbols",
    "in_backward",
    "inductor_counts",
    "inductor_folder",
    "is_backward",
    "is_compiled_wrapper",
    "is_composite",
    "is_fake",
    "is_tangent",
    "kernel_seconds",
    "known_value",
    "let_gloo_finish_at_exit",
    "load_region",
    "must_recompute",
    "never_compile_alone",
    "outside_tracing",
    "region_bytes",
    "replace_frame",
    "seconds_in_dynamo",
    "source_expression",
    "split_joint",
    "tag_phase",
    "torch_version",
    "trace_again_if_needed",
    "trace_backward",
    "without_fake_tensor_logs",
    "without_memory",
]
