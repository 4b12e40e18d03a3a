"""Conversations as text by a tokenizer's own chat template, without losing the reasoning on the way."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crosscoders._typing import typed

_OPEN, _CLOSE = "<think>", "</think>"
_ROLES = ("system", "user", "assistant")
_KEYS = ("role", "content", "reasoning_content")
_QUESTION = "What is 2 plus 3?"


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """What a chat template does to reasoning.

    Args:
        deletes_reasoning: The reasoning before `</think>` in the last assistant turn is not in the result.
        deletes_earlier_reasoning: That of assistant turns before the last one is not.
        appends_think: The prompt for a new turn (`add_generation_prompt`) ends in `<think>`.
    """

    deletes_reasoning: bool
    deletes_earlier_reasoning: bool
    appends_think: bool


@typed
def check_chat_template(tokenizer: Any) -> ChatTemplate:
    """Find out by trial what a tokenizer's chat template does to reasoning.

    The template of DeepSeek-R1 and its distillations drops everything before `</think>` in assistant turns;
    since February 2025 it also ends its generation prompt in `<think>`.

    Args:
        tokenizer: A transformers tokenizer with a chat template.

    Returns:
        What is deleted and what is added.

    Raises:
        ValueError: No chat template, or one that cannot render a question with its answer.
    """
    (mark,) = _marks([{"content": _QUESTION}])
    thought = f"{_OPEN}\n{mark}\n{_CLOSE}\n\n5"
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": thought}]
    prompt = _apply(turns[:1], tokenizer, add_generation_prompt=True)
    return ChatTemplate(
        deletes_reasoning=mark not in _apply(turns, tokenizer),
        deletes_earlier_reasoning=mark not in _apply([*turns, turns[0]], tokenizer),
        appends_think=prompt.rstrip().endswith(_OPEN),
    )


@typed
def render_chat(messages: Sequence[Mapping[str, Any]], tokenizer: Any, *, keep_reasoning: bool = True) -> str:
    """One conversation as text, as its tokenizer's chat template writes it.

    A template that keeps the reasoning of every assistant turn is used as it is. Where it would delete some,
    `keep_reasoning` decides: True writes the template's own text around the turns and the unchanged content
    of each assistant turn inside; False raises. Reasoning is never lost silently.

    Args:
        messages: {"role", "content"} of each turn; a "reasoning_content" is put before the content between
            `<think>` and `</think>`.
        tokenizer: A transformers tokenizer with a chat template.
        keep_reasoning: Write the assistant turns whole where the template would cut them.

    Returns:
        The text with all special tokens of the template; encode it with `add_special_tokens=False`.

    Raises:
        ValueError: No messages, a message with other keys or without text, no chat template, one that cannot
            render these messages or leaves one out, or reasoning that would be lost.
    """
    turns = [_turn(message, at=at) for at, message in enumerate(messages)]
    if not turns:
        raise ValueError("render_chat: got no messages.")
    plain, marks = _apply(turns, tokenizer), _marks(turns)
    cut = _cut_turns(turns, plain, tokenizer, marks=marks)
    if not cut:
        return plain
    if keep_reasoning:
        return _render_whole(turns, tokenizer, marks=marks)
    raise ValueError(
        f"render_chat: the chat template deletes the reasoning before {_CLOSE} in assistant turn "
        f"{', '.join(str(at) for at in cut)} (counted from 0 over all messages); pass keep_reasoning=True to "
        "keep it, or take it out of the messages first."
    )


def _turn(message: Mapping[str, Any], *, at: int) -> dict[str, str]:
    extra = sorted(key for key, value in message.items() if key not in _KEYS and value not in (None, [], ""))
    texts = {key: message.get(key) for key in ("role", "content")}
    if extra or not all(isinstance(text, str) for text in texts.values()):
        got = {key: type(value).__name__ for key, value in message.items()}
        raise ValueError(
            f"render_chat: message {at} must have the texts role and content, and may have "
            f"reasoning_content; got {got}. Text under other keys would be lost; put it into the content."
        )
    if texts["role"] not in _ROLES:
        raise ValueError(
            f"render_chat: the role of message {at} must be one of {_ROLES}, got {texts['role']!r}; "
            "templates leave other turns out without a word."
        )
    reasoning = message.get("reasoning_content")
    if reasoning:
        texts["content"] = f"{_OPEN}\n{reasoning}\n{_CLOSE}\n\n{texts['content']}"
    return {key: str(text) for key, text in texts.items()}


def _cut_turns(turns: list[dict[str, str]], plain: str, tokenizer: Any, *, marks: Sequence[str]) -> list[int]:
    """Assistant turns whose reasoning the template deletes, found with marks in place of the reasoning."""
    marked, bodies = [], []
    for turn, mark in zip(turns, marks, strict=True):
        reasoning, close, answer = turn["content"].rpartition(_CLOSE)
        is_thought = turn["role"] == "assistant" and bool(reasoning.replace(_OPEN, "").strip())
        content = f"{_OPEN}\n{mark}\n{close}{answer}" if is_thought else mark
        marked.append({**turn, "content": content} if turn["content"].strip() else turn)
        bodies.append(reasoning.strip().removeprefix(_OPEN).strip() if is_thought else None)
    rendered, cut = _apply(marked, tokenizer), []
    for at, (turn, mark, body) in enumerate(zip(turns, marks, bodies, strict=True)):
        is_missing = marked[at] is not turn and mark not in rendered
        if is_missing and body is None:
            raise ValueError(
                f"render_chat: the chat template leaves out message {at} ({turn['role']!r}); put its text "
                "into another one, for instance all system texts into the first."
            )
        if body is not None and (is_missing or body not in plain):
            cut.append(at)
    return cut


def _render_whole(turns: list[dict[str, str]], tokenizer: Any, *, marks: Sequence[str]) -> str:
    """The template around marks, then the contents in place of the marks."""
    spoken = [at for at, turn in enumerate(turns) if turn["role"] == "assistant"]
    marked = [{**turn, "content": marks[at]} if at in spoken else turn for at, turn in enumerate(turns)]
    last = spoken[-1]
    whole = _apply(marked, tokenizer)
    start, _, end = whole.partition(marks[last])
    before = _apply(marked[:last], tokenizer, add_generation_prompt=True) if last else start
    appended = before[len(before.rstrip().removesuffix(_OPEN)) :] if before.rstrip().endswith(_OPEN) else ""
    shell = before.removesuffix(appended) + marks[last] + end
    for at in spoken:
        counts = (whole.count(marks[at]), shell.count(marks[at]))
        if counts != (1, 1):
            raise ValueError(
                f"render_chat: the chat template writes the content of message {at} {max(counts)} times, so "
                "its reasoning cannot be kept; render the conversation yourself and pass text."
            )
    contents = {marks[at]: _whole(turns[at]["content"], appended) for at in spoken}
    return re.sub("|".join(contents), lambda found: contents[found[0]], shell)


def _whole(content: str, appended: str) -> str:
    """The content, with the `<think>` before it that it leaves to the template's generation prompt."""
    is_half = _CLOSE in content and _OPEN not in content
    return (appended or f"{_OPEN}\n") + content if is_half else content


def _marks(turns: Sequence[Mapping[str, str]]) -> list[str]:
    """For each turn a word that no turn contains."""
    name = "crosscoders-turn"
    while any(name in turn["content"] for turn in turns):
        name += "-x"
    return [f"{name}-{at}-" for at in range(len(turns))]


def _apply(turns: Sequence[Mapping[str, str]], tokenizer: Any, *, add_generation_prompt: bool = False) -> str:
    from jinja2.exceptions import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"chat template: the tokenizer (class {type(tokenizer).__name__}) has none; set "
            "tokenizer.chat_template, or pass text that is rendered already."
        )
    try:
        return tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except (TemplateError, TypeError) as err:
        roles = [turn["role"] for turn in turns]
        raise ValueError(f"chat template: it cannot render turns of roles {roles} ({err}).") from err
