"""What the bundled pair brings to the experiments: its grammar knows every token's function."""

from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.experiments.study import Material, Prompt
from crosscoders.pipeline.bundled import TEMPERATURE
from crosscoders.reasoning import CATEGORIES
from crosscoders.reasoning.roles import ROLES
from crosscoders.zoo.analogies import word_tasks
from crosscoders.zoo.arithmetic import answer
from crosscoders.zoo.base_text import SOLUTION, prompt
from crosscoders.zoo.corpus import ORIGINS, SAMPLE, LabelledTokens
from crosscoders.zoo.grader import ArithmeticGrader
from crosscoders.zoo.measure import MAX_NEW_TOKENS, held_out_problems
from crosscoders.zoo.parser import acts, to_text
from crosscoders.zoo.traces import TRACE
from crosscoders.zoo.vocabulary import END_OF_TEXT, encode, token_ids

_TEMPLATE = ("Question:", "Thoughts:", "Solution:", "Answer:")
N_PROMPTS, PROMPT_SEED = 200, 7


@typed
def bundled_material(splits: Sequence[LabelledTokens]) -> Material:
    """Labels of the held-out splits, problems with a grader, and analogies of the pair's own vocabulary.

    Args:
        splits: The held-out splits, in the order in which the corpus holds them.

    Returns:
        The material.
    """
    ids = token_ids()
    problems = held_out_problems(N_PROMPTS, seed=PROMPT_SEED)
    return Material(
        markers={
            category: torch.cat([_openers(labels, index) for labels in splits])
            for index, category in enumerate(CATEGORIES)
        },
        prompts=tuple(
            Prompt(ids=encode(prompt(problem)), reference=str(answer(problem))) for problem in problems
        ),
        count_categories=count_acts,
        stop_ids=(ids[END_OF_TEXT],),
        grade=ArithmeticGrader().grade,
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=TEMPERATURE,
        steer_at_tokens=(ids["."],),  # where a clause can start, and where the latents were chosen
        roles=torch.cat([token_roles(labels) for labels in splits]),
        role_names=ROLES,
        word_tasks={task.name: task.pairs for task in word_tasks()},
    )


@typed
def count_acts(ids: Sequence[int]) -> dict[str, int]:
    """Well-formed reasoning acts of each category in an answer, as the grammar's parser reads them.

    Args:
        ids: Token ids.
    """
    found = Counter(act.category for act in acts(to_text(ids)))
    return {category: found[category] for category in CATEGORIES}


@typed
def token_roles(labels: LabelledTokens) -> Int[Tensor, "batch pos"]:
    """Role of each token of a question with its worked answer, as an index into `ROLES`; -1 elsewhere.

    The words that frame a document are its template; what is asked is the prompt; the steps are thought, and
    what follows "Answer:" is the answer.

    Args:
        labels: Labeled rows.
    """
    asks = torch.tensor([ORIGINS.index(origin) for origin in (SOLUTION, TRACE, SAMPLE)])
    is_asked = torch.isin(labels.origin, asks)
    roles = torch.where(labels.is_prompt, ROLES.index("prompt"), ROLES.index("thought"))
    is_template = torch.zeros_like(is_asked)
    for words in _TEMPLATE:
        first, colon = encode(words)
        opens = labels.tokens == first
        opens[:, :-1] &= labels.tokens[:, 1:] == colon
        opens[:, -1] = False
        is_template |= opens
        is_template[:, 1:] |= opens[:, :-1]
        if words == "Answer:":
            roles = torch.where(_until_document_ends(opens, labels), ROLES.index("answer"), roles)
    roles = torch.where(is_template, ROLES.index("template"), roles)
    return torch.where(is_asked, roles, -1)


def _until_document_ends(starts: Tensor, labels: LabelledTokens) -> Tensor:
    """Positions from a start on, up to the end-of-text that closes its document."""
    inside = torch.zeros_like(starts)
    is_on = torch.zeros(len(starts), dtype=torch.bool)
    for at in range(starts.shape[1]):
        is_on = (is_on | starts[:, at]) & (labels.tokens[:, at] != token_ids()[END_OF_TEXT])
        inside[:, at] = is_on
    return inside


def _openers(labels: LabelledTokens, category: int) -> Bool[Tensor, "batch pos"]:
    """The first word of each act of a category: the token after the one that is labeled as its onset."""
    opens = torch.zeros_like(labels.tokens, dtype=torch.bool)
    opens[:, 1:] = labels.onset[:, :-1] == category
    return opens
