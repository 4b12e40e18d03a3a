"""Word pairs in tiny-reasoner's own vocabulary, for the geometry of its features.

The paper's tasks need words that this language lacks. A relation and its inverse have the same parallelograms
(swap input and output: the step changes its sign), so of such two only one is here.
"""

from itertools import combinations

from crosscoders._typing import typed
from crosscoders.geometry import WordTask
from crosscoders.zoo.text import FORMS
from crosscoders.zoo.vocabulary import token_ids

_SPACE = "\u2581"


@typed
def word_tasks() -> tuple[WordTask, ...]:
    """Six relations between words; numbers have two digits throughout, so that every number is two tokens.

    - next_digit: 0 1, ..., 8 9.
    - next_number: 10 11, ..., 98 99.
    - plus_ten: 10 20, ..., 89 99; input and output end in the same token, which was read after another one.
    - double: 10 20, ..., 49 98.
    - capitalize: words that the vocabulary has in both spellings.
    - marker_synonym: words that open the same kind of reasoning act, such as Wait and Hold; distillation
      taught what they do.

    Returns:
        The tasks, with 9 to 89 pairs each.
    """
    pairs = {
        "next_digit": tuple((str(n), str(n + 1)) for n in range(9)),
        "next_number": tuple((str(n), str(n + 1)) for n in range(10, 99)),
        "plus_ten": tuple((str(n), str(n + 10)) for n in range(10, 90)),
        "double": tuple((str(n), str(2 * n)) for n in range(10, 50)),
        "capitalize": _capitalized(),
        "marker_synonym": tuple(pair for words in FORMS.values() for pair in combinations(words, 2)),
    }
    return tuple(WordTask(name=name, pairs=found) for name, found in pairs.items())


def _capitalized() -> tuple[tuple[str, str], ...]:
    words = {token.removeprefix(_SPACE) for token in token_ids() if token.startswith(_SPACE)}
    both = sorted(word for word in words if word.islower() and word.capitalize() in words)
    return tuple((word, word.capitalize()) for word in both)
