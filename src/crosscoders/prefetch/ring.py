"""Memory that two processes share, without a name that could be left behind."""

import logging
import mmap
import os
import tempfile
from multiprocessing import reduction
from typing import Any

import torch
from torch import Tensor

from crosscoders.prefetch.messages import Slot

_LOG = logging.getLogger(__name__)


class SharedMemory:
    """Bytes that two processes see, freed by the kernel when the last of them ends.

    It is an anonymous file in memory (`memfd_create`; where that is missing, a deleted temporary file): the
    size of `/dev/shm` is no limit to it, and a killed process cannot leave it behind. It travels to a
    spawned process as an argument.

    Args:
        descriptor: Of the file, which it then owns; None makes one.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = _anonymous_file() if descriptor is None else descriptor
        self._bytes: Tensor | None = None
        self._is_pinned = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _attached, (reduction.DupFd(self._descriptor),)

    @property
    def n_bytes(self) -> int:
        """Length of the part that this process has mapped."""
        return 0 if self._bytes is None else len(self._bytes)

    def grow(self, n_bytes: int) -> None:
        """Make it that long; what it held is lost, and views of it must not be in use."""
        os.ftruncate(self._descriptor, n_bytes)
        self.map(n_bytes)

    def map(self, n_bytes: int, *, pin: bool = False) -> None:
        """See that many bytes of it in this process.

        Args:
            n_bytes: Length to which the other side has grown it.
            pin: Lock the pages for copies by a GPU.
        """
        if n_bytes == self.n_bytes:
            return
        self._unpin()
        self._bytes = torch.frombuffer(mmap.mmap(self._descriptor, n_bytes), dtype=torch.uint8)
        if pin:
            self._pin()

    def view(self, slot: Slot) -> Tensor:
        """The tensor that lies in a slot.

        Args:
            slot: Within what is mapped.
        """
        assert self._bytes is not None
        n_bytes = torch.Size(slot.shape).numel() * slot.dtype.itemsize
        return self._bytes[slot.offset : slot.offset + n_bytes].view(slot.dtype).view(slot.shape)

    def close(self) -> None:
        """Let go of it; the memory is free once the other side has, too."""
        self._unpin()
        self._bytes = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _pin(self) -> None:
        assert self._bytes is not None
        error = _cuda().cudaHostRegister(self._bytes.data_ptr(), len(self._bytes), 0)
        self._is_pinned = int(error) == 0
        if not self._is_pinned:
            _LOG.warning(
                "PrefetchedBatches: %d bytes could not be pinned (CUDA error %d); copies are slower.",
                len(self._bytes),
                int(error),
            )

    def _unpin(self) -> None:
        if self._is_pinned and self._bytes is not None:
            _cuda().cudaHostUnregister(self._bytes.data_ptr())
        self._is_pinned = False


def _cuda() -> Any:
    """CUDA's runtime, which torch loads with the first device that is used."""
    return torch.cuda.cudart()


def _attached(descriptor: Any) -> SharedMemory:
    return SharedMemory(descriptor.detach())


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("crosscoders-prefetch")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
