"""Exceptions that a caller may want to catch; every other failure is a builtin exception."""


class CrosscodersError(Exception):
    """Base class of the library's own exceptions."""


class AdapterMismatchError(CrosscodersError, ValueError):
    """A model or tokenizer is not what its adapter, or the other source, expects."""


class CheckpointError(CrosscodersError, ValueError):
    """A stored artifact or checkpoint is damaged, edited, incomplete or of another format version."""


class DivergedError(CrosscodersError, RuntimeError):
    """A loss or gradient is NaN or infinite; no weight was updated with it."""


class KernelUnavailableError(CrosscodersError, RuntimeError):
    """A kernel backend was asked for by name and cannot run here; the message gives the cause."""
