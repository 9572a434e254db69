"""Rendered kernels: from the arithmetic of an update to source text, and from text to a function.

    spec = KernelSpec(...)            what one element goes through (zc.codegen.spec)
    render_triton(spec)               Triton source, one launch for a list of tensors
    render_cpp(spec)                  C++ source, the same
    render_torch(spec)                Python on torch tensors: the reference

The text of every operation stands once, in ``zc.codegen.table``. Nothing here knows of programs,
process groups or optimizers.
"""
