"""Stored rows become a batch on the trainer's device."""

import torch
from torch import Tensor


class Handout:
    """Copies rows to a device and into the dtype that is given out.

    On CUDA the copy runs on a stream of its own, beside the work that is queued already, and the trainer's
    stream waits for it; rows must then lie in pinned memory and stay as they are until the event has passed.

    Args:
        device: Where batches are given out.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def batch(self, rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, torch.cuda.Event | None]:
        """A copy of the rows, and the event after which they may be overwritten.

        Args:
            rows: What was stored.
            dtype: Dtype of the batch.

        Returns:
            The batch, and None where it is complete already.
        """
        if self._stream is None or rows.is_cuda:
            return rows.to(device=self.device, dtype=dtype, copy=True), None
        with torch.cuda.stream(self._stream):
            batch = rows.to(self.device, non_blocking=True).to(dtype)
            done = torch.cuda.Event()
            done.record(self._stream)
        using = torch.cuda.current_stream(self.device)
        using.wait_event(done)
        batch.record_stream(using)
        return batch, done
