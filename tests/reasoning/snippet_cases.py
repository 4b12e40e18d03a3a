"""Hand-made snippets."""

from crosscoders.reasoning import Snippet


def snippet(text: str, *, at: int, active: dict[int, float] | None = None, row: int = 0) -> Snippet:
    """One token per word, with the space before it; it fires at `at` with 1, or as `active` says."""
    words = text.split(" ")
    pieces = tuple(word if index == 0 else " " + word for index, word in enumerate(words))
    values = {at: 1.0} if active is None else active
    activations = tuple(values.get(index, 0.0) for index in range(len(pieces)))
    return Snippet(
        activation=activations[at], pieces=pieces, activations=activations, at=at, row=row, position=at
    )


WAITS = [snippet("it is 4 . Wait , check that", at=at) for at in (4, 3, 4, 3)]
PLAIN = [snippet("the dog saw a cat in the park", at=at) for at in range(8)]
