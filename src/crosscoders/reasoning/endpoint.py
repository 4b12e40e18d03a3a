"""A client of chat-completion endpoints that caches on disk, retries patiently and counts the cost."""

import email.utils
import hashlib
import http.client
import json
import logging
import math
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, final

from crosscoders._io import atomic_write_json
from crosscoders._typing import typed
from crosscoders.errors import CrosscodersError
from crosscoders.reasoning.endpoint_config import CostEstimate, EndpointConfig, EndpointReport, key_of

log = logging.getLogger(__name__)
T = TypeVar("T")
Message = Mapping[str, str]
_RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_FINAL_STATUS = frozenset({401, 403, 404})  # whatever is asked; other refusals concern one question
_MAX_REFUSAL_BYTES = 1 << 16
_SHOWN_CHARACTERS = 300
_LEAST_SECRET = 8  # characters of a key that is worth hiding in answers; a shorter one is a placeholder
_MESSAGE_OVERHEAD_TOKENS = 4
_COUNTED = ("calls", "cached", "failed", "retries", "garbage", "input", "output")


class EndpointError(CrosscodersError, RuntimeError):
    """No usable answer from an endpoint, after all retries.

    Args:
        message: What happened.
        is_final: Whether asking anything else is pointless too, as with a refused key.
    """

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


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
    with doubling waits; other refusals are not, and 401, 403 and 404 are final. Redirects are not followed.
    The key is taken from its environment variable here, and masked in whatever the endpoint says.

    Args:
        config: The endpoint.
        cache: Folder of the answers; created if missing.
        sleep: Waits so many seconds; replaceable for tests.

    Raises:
        ValueError: The configured environment variable holds no key, or one that no header can carry.
    """

    def __init__(
        self, config: EndpointConfig, *, cache: Path, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.config = config
        self._key = key_of(config)
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

        Returns:
            Calls, tokens and cost, in the currency of the configured prices.
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
            is_priced=self.config.price_per_million_input > 0 or self.config.price_per_million_output > 0,
        )

    @typed
    def ask(self, messages: Sequence[Message], parse: Callable[[str], T]) -> T:
        """The parsed answer to a question, from disk if it is there.

        Args:
            messages: Chat messages with the keys "role" and "content".
            parse: Turns the answer's text into what is wanted; raises ValueError if it is of no use.

        Returns:
            What `parse` made of the answer.

        Raises:
            EndpointError: No usable answer after all retries, a refusal, or `max_calls` reached.
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
        except (ValueError, RecursionError) as err:
            self._counts["garbage"] += 1
            raise _Passing(self._masked(f"an answer of no use ({err}): {text[:120]!r}")) from None

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
        if self._counts["calls"] >= self.config.max_calls:
            raise EndpointError(
                f"{self.config.base_url}: max_calls, {self.config.max_calls}, reached; raise it to go on. "
                "The answers so far are kept.",
                is_final=True,
            )
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
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
            raise self._refusal(err) from None  # no cause: its text may hold the key
        except (OSError, http.client.HTTPException) as err:  # URLError and timeouts are OSErrors
            raise _Passing(self._masked(f"no answer ({type(err).__name__}: {err})")) from None
        return self._content(body)

    def _refusal(self, err: urllib.error.HTTPError) -> Exception:
        with err:
            try:
                said = err.read(_MAX_REFUSAL_BYTES).decode("utf-8", errors="replace")
            except (OSError, http.client.HTTPException):
                said = ""
        said = self._masked(f"({err.reason}) {said}")[:_SHOWN_CHARACTERS]
        if err.code in _RETRIED_STATUS:
            return _Passing(f"status {err.code}", wait_s=_retry_after_s(err.headers.get("Retry-After")))
        return EndpointError(
            f"{self.config.base_url}: status {err.code} for model {self.config.model!r}: {said!r}; "
            "check base_url, model and key.",
            is_final=err.code in _FINAL_STATUS,
        )

    def _content(self, body: bytes) -> str:
        try:
            reply = json.loads(body)
            text = reply["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            self._counts["garbage"] += 1
            said = self._masked(body.decode("utf-8", errors="replace"))[:120]
            raise _Passing(f"an answer that is no chat completion: {said!r}") from None
        usage = reply.get("usage") if isinstance(reply.get("usage"), dict) else {}
        for ours, theirs in (("input", "prompt_tokens"), ("output", "completion_tokens")):
            n = usage.get(theirs)
            self._counts[ours] += n if isinstance(n, int) else 0
        if not isinstance(text, str):
            self._counts["garbage"] += 1
            raise _Passing("an answer without text")
        return self._masked(text) if len(self._key) >= _LEAST_SECRET else text

    def _masked(self, text: str) -> str:
        """Text without the key, as it is or as JSON may escape it."""
        if not self._key:
            return text
        spelled = "".join(rf"(?:{re.escape(c)}|\\{re.escape(c)}|\\u00{ord(c):02x})" for c in self._key)
        return re.sub(spelled, "***", text, flags=re.IGNORECASE)

    def _read(self, path: Path, parse: Callable[[str], T]) -> tuple[T] | None:
        """The kept answer, or None if there is none that can be used (it is then asked anew)."""
        if not path.exists():
            return None
        try:
            return (parse(json.loads(path.read_text(encoding="utf-8"))["answer"]),)
        except (ValueError, LookupError, TypeError, RecursionError) as err:
            log.warning("%s holds no usable answer (%s); asking again", path, self._masked(str(err)))
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
        wait_s = float(value)
    except ValueError:
        try:
            wait_s = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return wait_s if math.isfinite(wait_s) and wait_s > 0 else 0.0
