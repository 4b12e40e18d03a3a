"""`TokenBatches`: token ids in batches, which of their positions count, and what identifies them."""

import hashlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence

import torch
from torch import Tensor


class TokenBatches:
    """Token batches that are read in order, from the first or, where they can be read again, from any one.

    One reader at a time: a second `read_from` takes over from the first.

    Args:
        batches: Token ids [batch pos].
        exclude_token_ids: Positions with these ids are left out.
        skip_positions: Leading positions of each sequence that are left out.

    Raises:
        ValueError: No token batches.
    """

    def __init__(
        self, batches: Iterable[Tensor], *, exclude_token_ids: Collection[int], skip_positions: int
    ) -> None:
        self._batches = batches
        self.exclude_token_ids = tuple(sorted(exclude_token_ids))
        self.skip_positions = skip_positions
        self._excluded = torch.tensor(self.exclude_token_ids, dtype=torch.int64)
        iterator = iter(batches)
        self.can_restart = iterator is not batches
        first = next(iterator, None)
        if first is None:
            raise ValueError("ActivationBuffer: token_batches is empty; there is nothing to harvest.")
        self.first_sha256 = ids_sha256([first])
        self.sequence: Sequence[Tensor] | None = batches if isinstance(batches, Sequence) else None
        sizes = [first.numel()] if self.sequence is None else [tokens.numel() for tokens in self.sequence]
        self.largest_batch = max(sizes)
        self._iterator = itertools.chain([first], iterator)
        self._next = 0  # the token batch that the iterator gives next

    def n_rows(self) -> int | None:
        """Kept rows in all token batches, counted from the ids; None unless they are a sequence."""
        if self.sequence is None:
            return None
        return sum(int(self.is_kept(tokens).sum()) for tokens in self.sequence)

    def is_kept(self, tokens: Tensor) -> Tensor:
        """Which positions [batch pos] of token ids are neither excluded nor skipped.

        Args:
            tokens: Token ids [batch pos].

        Returns:
            A boolean tensor of the same shape.
        """
        is_kept = ~torch.isin(tokens, self._excluded.to(tokens.device))
        is_kept[:, : self.skip_positions] = False
        return is_kept

    def read_from(self, batch: int) -> Iterator[Tensor]:
        """Token batches from one on, each checked.

        Args:
            batch: Index of the first.

        Yields:
            Token ids [batch pos].

        Raises:
            ValueError: A one-shot iterator is beyond it, or a batch is no integer ids [batch pos] or larger
                than memory was set aside for.
        """
        self._go_to(batch)
        for tokens in self._iterator:
            self._next += 1
            self._check(tokens, batch=self._next - 1)
            yield tokens

    def _go_to(self, batch: int) -> None:
        if batch < self._next:
            if not self.can_restart:
                raise one_shot_error()
            self._iterator, self._next = itertools.chain(self._batches), 0
        if self.sequence is not None:
            self._iterator = itertools.chain(self.sequence[i] for i in range(batch, len(self.sequence)))
        else:
            self._iterator = itertools.islice(self._iterator, batch - self._next, None)
        self._next = batch

    def _check(self, tokens: Tensor, *, batch: int) -> None:
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise ValueError(
                f"ActivationBuffer: token batch {batch} must be integer ids [batch, pos], got "
                f"{tokens.dtype} of shape {tuple(tokens.shape)}."
            )
        if tokens.numel() > self.largest_batch:
            raise ValueError(
                f"ActivationBuffer: token batch {batch} has {tokens.numel()} tokens, more than the first "
                f"one's {self.largest_batch} for which memory was set aside; pass a list, or the "
                "largest batch first."
            )


def ids_sha256(batches: Iterable[Tensor]) -> str:
    """Hex SHA-256 of token batches: of each one its shape and its ids as int64.

    Args:
        batches: Token ids [batch pos].

    Returns:
        64 hex digits.
    """
    digest = hashlib.sha256()
    for tokens in batches:
        ids = tokens.detach().cpu().to(torch.int64).contiguous()
        digest.update(repr(tuple(ids.shape)).encode())
        digest.update(ids.numpy().data)
    return digest.hexdigest()


def one_shot_error() -> ValueError:
    """What to raise where token batches would have to be read again and cannot."""
    return ValueError(
        "ActivationBuffer: token_batches is a one-shot iterator and cannot be read again; "
        "pass a list, or an object whose __iter__ starts anew."
    )
