"""What an `ActivationBuffer` refuses: settings out of range, too little memory, states of other runs."""

from collections.abc import Mapping
from typing import Any

import torch

_ORDER_BYTES = torch.int64.itemsize  # of a row's place in the permutation


def check_harvest(*, skip_positions: int, dtype: torch.dtype) -> None:
    """Check what decides which rows there are.

    Args:
        skip_positions: Leading positions of each sequence that are left out.
        dtype: Dtype of the rows.

    Raises:
        ValueError: A negative count, or no floating dtype.
    """
    if skip_positions < 0 or not dtype.is_floating_point:
        raise ValueError(
            f"ActivationBuffer: skip_positions must be at least 0 (got {skip_positions}) and dtype "
            f"floating (got {dtype})."
        )


def check_service(*, batch_tokens: int, epochs: int, max_norm_multiple: float | None) -> None:
    """Check what decides how rows are served.

    Args:
        batch_tokens: Rows per batch.
        epochs: Passes over the rows.
        max_norm_multiple: Largest norm in multiples of the median, if there is one.

    Raises:
        ValueError: One of them is out of range.
    """
    for name, value in {"batch_tokens": batch_tokens, "epochs": epochs}.items():
        if value < 1:
            raise ValueError(f"ActivationBuffer: {name} must be at least 1, got {value}.")
    if max_norm_multiple is not None and not max_norm_multiple > 1:
        raise ValueError(
            f"ActivationBuffer: max_norm_multiple must exceed 1 (the median itself), got {max_norm_multiple}."
        )


def rows_within(
    max_bytes: int, *, row_bytes: int, batch_tokens: int, largest_batch: int, n_rows: int | None
) -> int:
    """How many rows a window holds: whole batches, beside the rows left over from one token batch.

    Args:
        max_bytes: Limit on the memory.
        row_bytes: Bytes of a row.
        batch_tokens: Rows per batch.
        largest_batch: Most rows that one token batch gives.
        n_rows: Rows of an epoch, which a window need not exceed; None if they are not known.

    Returns:
        A multiple of `batch_tokens`.

    Raises:
        ValueError: Not even one batch fits.
    """
    carried_bytes = largest_batch * row_bytes
    per_batch = batch_tokens * (row_bytes + _ORDER_BYTES)
    n_batches = (max_bytes - carried_bytes) // per_batch
    if n_batches < 1:
        raise ValueError(
            f"ActivationBuffer: max_bytes={max_bytes} is too small; a batch of {batch_tokens} rows "
            f"and the rows left over from one token batch need {carried_bytes + per_batch} bytes. Raise "
            "max_bytes, or lower batch_tokens or the size of the token batches."
        )
    if n_rows is not None:
        n_batches = min(n_batches, max(1, -(-n_rows // batch_tokens)))
    return n_batches * batch_tokens


def check_state(state: Mapping[str, Any], *, settings: Mapping[str, Any], first_sha256: str) -> None:
    """Check that a stored position is one of this buffer's.

    Args:
        state: The position.
        settings: This buffer's settings.
        first_sha256: SHA-256 of its first token batch.

    Raises:
        ValueError: It is one of other settings or token batches.
    """
    stored = state["settings"]
    differing = {key: (stored.get(key), mine) for key, mine in settings.items() if stored.get(key) != mine}
    if differing:
        raise ValueError(f"ActivationBuffer.load_state_dict: settings differ (stored, here): {differing}.")
    if state["first_batch_sha256"] != first_sha256:
        raise ValueError(
            "ActivationBuffer.load_state_dict: the first token batch is not that of the stored run; "
            "pass the same token batches in the same order."
        )


def check_read(
    n_filled: int, *, epoch: int, window: int, epoch_rows: int, batch_tokens: int, n_read: int
) -> None:
    """Check that a refill read enough to go on with.

    Args:
        n_filled: Rows of the window.
        epoch: Which epoch.
        window: Which of its windows.
        epoch_rows: Rows that this epoch served before.
        batch_tokens: Rows per batch.
        n_read: Token batches read in this epoch.

    Raises:
        ValueError: An epoch without rows, or a stream shorter than one batch.
    """
    if n_filled == 0 and epoch_rows == 0:
        raise ValueError(
            f"ActivationBuffer: epoch {epoch} would serve no rows: the refill read {n_read} token batches "
            "and kept nothing. Does token_batches start anew on each iteration, and do exclude_token_ids "
            "and skip_positions leave any position?"
        )
    if window == 0 and n_filled < batch_tokens:
        raise ValueError(
            f"ActivationBuffer: the token stream ended after {n_filled} usable rows, less than one batch "
            f"of {batch_tokens}; pass more tokens or lower batch_tokens."
        )


def require_restart(what: str, *, needed: bool, can_restart: bool) -> None:
    """Raise ValueError where rows would have to be read again and cannot.

    Args:
        what: What needs it.
        needed: Whether it does.
        can_restart: Whether they can.

    Raises:
        ValueError: Needed, but not possible.
    """
    if needed and not can_restart:
        raise ValueError(
            f"ActivationBuffer: {what} needs token_batches that can be read again, but got a one-shot "
            "iterator; pass a list, or an object whose __iter__ starts anew."
        )
