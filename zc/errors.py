"""The one tree of exceptions.

Every message says what broke, where, why and what to do next: lower-case first word, no full stop,
values quoted as they print.
"""


class ZcError(Exception):
    """Base of everything zc raises on purpose."""


class PipelineError(ZcError):
    """A pass pipeline that cannot be read or whose passes do not fit together."""


class ShardError(ZcError):
    """State at rest that cannot be sharded, read or restored as asked."""


class CaptureError(ZcError):
    """A model or step that cannot become a program."""


class PlanError(CaptureError):
    """A program whose communication differs from what was agreed before."""


class VerifyError(ZcError):
    """A program that breaks a rule of DESIGN section 4."""


class CapError(VerifyError):
    """A program whose predicted peak is above its memory cap."""


class MicrobatchError(ZcError):
    """A call of ``zc.microbatches`` that cannot be carried out as asked."""


class ExecutionError(ZcError):
    """A program that could not be bound or run."""


class CommunicationError(ExecutionError):
    """A collective that failed or timed out while a program ran."""
