"""The text that the snippets are cut from: token numbers and the text of each used token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.report.site.checks import check_pointers, check_range, check_shape, unsigned


@final
@dataclass(frozen=True, kw_only=True)
class TokenText:
    """Rows of tokens, one after the other, and the text of every token that the report shows.

    Args:
        tokens: Which of the strings each token is.
        strings: The text of each used token as `crosscoders.reasoning.token_text` gives it: bytes that are
            no UTF-8 as lone surrogates U+DC80 to U+DCFF. Also those that only the logit lens names.
        token_ids: The tokenizer's id of each string.
        row_start: Where each row of text starts in `tokens`, and last the number of tokens.
    """

    tokens: Int[Tensor, " _token"]
    strings: Sequence[str]
    token_ids: Int[Tensor, " _string"]
    row_start: Int[Tensor, " _row_and_end"]

    def __post_init__(self) -> None:
        check_shape("TokenText.tokens", self.tokens, (None,), is_float=False)
        check_shape("TokenText.token_ids", self.token_ids, (len(self.strings),), is_float=False)
        check_shape("TokenText.row_start", self.row_start, (None,), is_float=False)
        if not all(isinstance(text, str) for text in self.strings):
            raise ValueError("TokenText.strings: expected a list of strings; one of them is of another type.")
        check_range("TokenText.tokens (indices of strings)", self.tokens, 0, len(self.strings) - 1)
        check_range("TokenText.token_ids", self.token_ids, 0, 2**32 - 1)
        check_pointers("TokenText.row_start", self.row_start, end=len(self.tokens))


@typed
def text_file(text: TokenText) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Content of the text file.

    Args:
        text: The tokens and their text.

    Returns:
        The JSON part (the strings) and the arrays `tokens`, `token_ids` and `row_start`.
    """
    arrays = {
        "tokens": unsigned("TokenText.tokens", text.tokens, "u4"),
        "token_ids": unsigned("TokenText.token_ids", text.token_ids, "u4"),
        "row_start": unsigned("TokenText.row_start", text.row_start, "u4"),
    }
    return {"strings": list(text.strings)}, arrays
