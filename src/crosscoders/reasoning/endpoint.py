"""A client of chat-completion endpoints that caches on disk, retries patiently and counts the cost."""

import email.utils
import hashlib
import http.client
import json
import logging
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

from crosscoders._io import atomic_write_json
from crosscoders._typing import typed

log = logging.getLogger(__name__)
T = TypeVar("T")
Message = Mapping[str, str]
_RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_MESSAGE_OVERHEAD_TOKENS = 4
_COUNTED = ("calls", "cached", "failed", "retries", "garbage", "input", "output")


class EndpointError(RuntimeError):
    """No usable answer from an endpoint, after all retries.

    Args:
        message: What happened.
        is_final: Whether asking anything else is pointless too, as with a refused key.
    """

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """An OpenAI-compatible chat-completions endpoint and how to use it.

    Args:
        base_url: Address up to and without `/chat/completions`, such as `https://api.openai.com/v1`.
        model: Name of the model there.
        api_key_env: Environment variable that holds the key; None sends no key, as local servers want it. The
            key goes into the `Authorization` header of requests to this address and nowhere else.
        timeout_s: Longest silence of the endpoint.
        max_retries: Further tries after a failure that may pass, and after an answer of no use.
        first_wait_s: Wait before the second try; it doubles with each further one.
        max_wait_s: Longest wait; an endpoint that asks for more is given up.
        max_output_tokens: Limit on an answer's length.
        temperature: Sampling temperature.
        price_per_million_input: Price of a million input tokens, in any currency.
        price_per_million_output: Price of a million output tokens.
        characters_per_token: For estimates only.
    """

    base_url: str
    model: str
    api_key_env: str | None = "OPENAI_API_KEY"
    timeout_s: float = 60.0
    max_retries: int = 4
    first_wait_s: float = 1.0
    max_wait_s: float = 120.0
    max_output_tokens: int = 400
    temperature: float = 0.0
    price_per_million_input: float = 0.0
    price_per_million_output: float = 0.0
    characters_per_token: float = 3.5

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(
                f"EndpointConfig: base_url must start with http:// or https://, got {self.base_url!r}."
            )
        if not self.model:
            raise ValueError("EndpointConfig: model is empty; name one that the endpoint serves.")
        for name in ("timeout_s", "max_output_tokens", "characters_per_token"):
            if not getattr(self, name) > 0:
                raise ValueError(f"EndpointConfig: {name} must be positive, got {getattr(self, name)}.")
        for name in ("max_retries", "first_wait_s", "max_wait_s", "temperature"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"EndpointConfig: {name} must not be negative, got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """What some requests would take, before any is sent.

    Args:
        n_calls: Requests that would be sent.
        n_cached: Requests whose answers are on disk already.
        input_tokens: Tokens sent, from the number of characters.
        output_tokens: Tokens received at most.
        cost: At the configured prices, retries not counted.
    """

    n_calls: int
    n_cached: int
    input_tokens: int
    output_tokens: int
    cost: float

    def __add__(self, other: "CostEstimate") -> "CostEstimate":
        return CostEstimate(
            n_calls=self.n_calls + other.n_calls,
            n_cached=self.n_cached + other.n_cached,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cost=self.cost + other.cost,
        )

    def __str__(self) -> str:
        return (
            f"{self.n_calls} calls ({self.n_cached} more are cached), about {self.input_tokens} tokens in "
            f"and at most {self.output_tokens} out, cost at most about {self.cost:.4f}"
        )


@dataclass(frozen=True, kw_only=True)
class EndpointReport:
    """What a client did so far.

    Args:
        n_calls: Requests sent, retries included.
        n_cached: Answers taken from disk.
        n_failed: Questions that got no usable answer.
        n_retries: Requests sent again.
        n_garbage: Answers of no use.
        input_tokens: Tokens sent, as the endpoint counts them.
        output_tokens: Tokens received, as the endpoint counts them.
        cost: Of those tokens, at the configured prices.
    """

    n_calls: int
    n_cached: int
    n_failed: int
    n_retries: int
    n_garbage: int
    input_tokens: int
    output_tokens: int
    cost: float


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another address."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class _Passing(Exception):
    """A failure that may pass; carries how long the endpoint asks to wait."""

    def __init__(self, message: str, *, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


@final
class ChatClient:
    """Asks an endpoint questions, each at most once as long as the cache folder lives.

    An answer goes to disk as soon as it has been understood, one JSON file per question, named by the SHA-256
    of model, messages and sampling parameters; an interrupted run goes on where it stopped. Timeouts, broken
    connections, rate limits (`Retry-After` is respected), server errors and answers of no use are tried again
    with doubling waits; other refusals are not. Redirects are not followed.

    Args:
        config: The endpoint.
        cache: Folder of the answers; created if missing.
        sleep: Waits so many seconds; replaceable for tests.
    """

    def __init__(
        self, config: EndpointConfig, *, cache: Path, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.config = config
        self.cache = Path(cache)
        self.cache.mkdir(parents=True, exist_ok=True)
        self._sleep = sleep
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._counts: dict[str, int] = dict.fromkeys(_COUNTED, 0)

    @typed
    def estimate(self, questions: Sequence[Sequence[Message]]) -> CostEstimate:
        """What asking some questions would take; nothing is sent.

        Args:
            questions: Messages of each question.
        """
        new = {self._path(question): question for question in questions}
        new = {path: question for path, question in new.items() if not path.exists()}
        n_in = sum(self._n_tokens(question) for question in new.values())
        n_out = len(new) * self.config.max_output_tokens
        return CostEstimate(
            n_calls=len(new),
            n_cached=len(questions) - len(new),
            input_tokens=n_in,
            output_tokens=n_out,
            cost=self._cost(n_in, n_out),
        )

    @typed
    def ask(self, messages: Sequence[Message], parse: Callable[[str], T]) -> T:
        """The parsed answer to a question, from disk if it is there.

        Args:
            messages: Chat messages with the keys "role" and "content".
            parse: Turns the answer's text into what is wanted; raises ValueError if it is of no use.

        Raises:
            EndpointError: No usable answer after all retries, or a refusal.
            ValueError: The configured environment variable holds no key.
        """
        path = self._path(messages)
        kept = self._read(path, parse)
        if kept is not None:
            self._counts["cached"] += 1
            return kept[0]
        try:
            return self._ask_until_understood(messages, parse, path)
        except EndpointError:
            self._counts["failed"] += 1
            raise

    @typed
    def report(self) -> EndpointReport:
        """What was sent and received so far."""
        c = self._counts
        return EndpointReport(
            n_calls=c["calls"],
            n_cached=c["cached"],
            n_failed=c["failed"],
            n_retries=c["retries"],
            n_garbage=c["garbage"],
            input_tokens=c["input"],
            output_tokens=c["output"],
            cost=self._cost(c["input"], c["output"]),
        )

    def _ask_until_understood(self, messages: Sequence[Message], parse: Callable[[str], T], path: Path) -> T:
        for attempt in range(self.config.max_retries + 1):
            try:
                text = self._send(messages)
                answer = self._understood(text, parse)
            except _Passing as failure:
                self._wait(attempt, failure)
                continue
            atomic_write_json(path, {"request": self._request(messages), "answer": text})
            return answer
        raise AssertionError("the last attempt returns or raises")

    def _understood(self, text: str, parse: Callable[[str], T]) -> T:
        try:
            return parse(text)
        except ValueError as err:
            self._counts["garbage"] += 1
            raise _Passing(f"an answer of no use ({err}): {text[:120]!r}") from err

    def _wait(self, attempt: int, failure: _Passing) -> None:
        wait_s = max(failure.wait_s, self.config.first_wait_s * 2**attempt)
        tries = f"{self.config.base_url}, try {attempt + 1} of {self.config.max_retries + 1}"
        if attempt == self.config.max_retries or failure.wait_s > self.config.max_wait_s:
            asked = f" It asks to wait {failure.wait_s:.0f} s." if failure.wait_s else ""
            raise EndpointError(
                f"{tries}: {failure}.{asked} Run again to go on; the answers so far are kept."
            ) from failure
        log.info("%s: %s; waiting", tries, failure)
        self._counts["retries"] += 1
        self._sleep(min(wait_s, self.config.max_wait_s))

    def _send(self, messages: Sequence[Message]) -> str:
        key = self._key()
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        request = urllib.request.Request(
            self.config.base_url.rstrip("/") + "/chat/completions",
            data=json.dumps(self._request(messages)).encode("utf-8"),
            headers=headers,
            method="POST",
        )
        self._counts["calls"] += 1
        try:
            with self._opener.open(request, timeout=self.config.timeout_s) as response:
                body = response.read()
        except urllib.error.HTTPError as err:
            raise self._refusal(err, key) from err
        except (OSError, http.client.HTTPException) as err:  # URLError and timeouts are OSErrors
            raise _Passing(f"no answer ({type(err).__name__}: {err})") from err
        return self._content(body)

    def _refusal(self, err: urllib.error.HTTPError, key: str | None) -> Exception:
        with err:
            try:
                said = err.read(500).decode("utf-8", errors="replace")
            except (OSError, http.client.HTTPException):
                said = ""
        said = said.replace(key, "***") if key else said
        if err.code in _RETRIED_STATUS:
            return _Passing(f"status {err.code}", wait_s=_retry_after_s(err.headers.get("Retry-After")))
        return EndpointError(
            f"{self.config.base_url}: status {err.code} ({err.reason}) for model {self.config.model!r}: "
            f"{said!r}; check base_url, model and key.",
            is_final=True,
        )

    def _content(self, body: bytes) -> str:
        try:
            reply = json.loads(body)
            text = reply["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as err:
            self._counts["garbage"] += 1
            raise _Passing(f"an answer that is no chat completion: {body[:120]!r}") from err
        usage = reply.get("usage") if isinstance(reply.get("usage"), dict) else {}
        for ours, theirs in (("input", "prompt_tokens"), ("output", "completion_tokens")):
            n = usage.get(theirs)
            self._counts[ours] += n if isinstance(n, int) else 0
        if not isinstance(text, str):
            self._counts["garbage"] += 1
            raise _Passing("an answer without text")
        return text

    def _read(self, path: Path, parse: Callable[[str], T]) -> tuple[T] | None:
        """The kept answer, or None if there is none that can be used (it is then asked anew)."""
        if not path.exists():
            return None
        try:
            return (parse(json.loads(path.read_text(encoding="utf-8"))["answer"]),)
        except (ValueError, LookupError, TypeError) as err:
            log.warning("%s holds no usable answer (%s); asking again", path, err)
            return None

    def _request(self, messages: Sequence[Message]) -> dict[str, Any]:
        return {
            "model": self.config.model,
            "messages": [dict(message) for message in messages],
            "temperature": self.config.temperature,
            "max_tokens": self.config.max_output_tokens,
        }

    def _path(self, messages: Sequence[Message]) -> Path:
        canonical = json.dumps(self._request(messages), sort_keys=True, separators=(",", ":"))
        return self.cache / f"{hashlib.sha256(canonical.encode('utf-8')).hexdigest()}.json"

    def _key(self) -> str | None:
        name = self.config.api_key_env
        if name is None:
            return None
        key = os.environ.get(name, "")
        if not key:
            raise ValueError(
                f"EndpointConfig: the environment variable {name} holds no key; set it, or pass "
                "api_key_env=None for an endpoint that wants none."
            )
        return key

    def _n_tokens(self, messages: Sequence[Message]) -> int:
        n_characters = sum(len(message["content"]) for message in messages)
        return math.ceil(n_characters / self.config.characters_per_token) + _MESSAGE_OVERHEAD_TOKENS * len(
            messages
        )

    def _cost(self, n_in: int, n_out: int) -> float:
        prices = self.config.price_per_million_input, self.config.price_per_million_output
        return (n_in * prices[0] + n_out * prices[1]) / 1e6


def _retry_after_s(value: str | None) -> float:
    """Seconds that a `Retry-After` header asks for: a number of them or a date; 0 if it says neither."""
    if value is None:
        return 0.0
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return 0.0
