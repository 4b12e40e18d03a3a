"""How an endpoint is reached and paid: its settings, its key, what it would cost and what it did."""

import os
import re
import urllib.parse
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """An OpenAI-compatible chat-completions endpoint and how to use it.

    Args:
        base_url: Address up to and without `/chat/completions`, such as `https://api.openai.com/v1`.
        model: Name of the model there.
        api_key_env: Environment variable that holds the key; empty (or None) sends no key, as local servers
            want it. The key goes into the `Authorization` header of requests to this address and nowhere
            else.
        timeout_s: Longest silence of the endpoint.
        max_retries: Further tries after a failure that may pass, and after an answer of no use.
        first_wait_s: Wait before the second try; it doubles with each further one.
        max_wait_s: Longest wait; an endpoint that asks for more is given up.
        max_output_tokens: Limit on an answer's length.
        temperature: Sampling temperature.
        price_per_million_input: Price of a million input tokens, in any currency.
        price_per_million_output: Price of a million output tokens.
        characters_per_token: For estimates only.
        max_calls: Most requests that a client sends, retries included; a bound also where no price is given.

    Raises:
        ValueError: A number out of range, no model, or an `api_key_env` that is no variable's name.
    """

    base_url: str
    model: str
    api_key_env: str | None = ""
    timeout_s: float = 60.0
    max_retries: int = 4
    first_wait_s: float = 1.0
    max_wait_s: float = 120.0
    max_output_tokens: int = 400
    temperature: float = 0.0
    price_per_million_input: float = 0.0
    price_per_million_output: float = 0.0
    characters_per_token: float = 3.5
    max_calls: int = 2000

    def __post_init__(self) -> None:
        _check_url(self.base_url)
        if self.api_key_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise ValueError(
                "EndpointConfig: api_key_env is no name of an environment variable (it is not shown, it may "
                "be a key); put the key into a variable and its name here."
            )
        if not self.model:
            raise ValueError("EndpointConfig: model is empty; name one that the endpoint serves.")
        for name in ("timeout_s", "max_output_tokens", "characters_per_token", "max_calls"):
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
        is_priced: Whether there are prices; without them the cost is 0 and says nothing.
    """

    n_calls: int
    n_cached: int
    input_tokens: int
    output_tokens: int
    cost: float
    is_priced: bool = True

    def __add__(self, other: "CostEstimate") -> "CostEstimate":
        return CostEstimate(
            n_calls=self.n_calls + other.n_calls,
            n_cached=self.n_cached + other.n_cached,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cost=self.cost + other.cost,
            is_priced=self.is_priced and other.is_priced,
        )

    def __str__(self) -> str:
        cost = f"cost at most about {self.cost:.4f}" if self.is_priced else "cost unknown: no price given"
        return (
            f"{self.n_calls} calls ({self.n_cached} more are cached), about {self.input_tokens} tokens in "
            f"and at most {self.output_tokens} out, {cost}"
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


def key_of(config: EndpointConfig) -> str:
    """The key from its environment variable; empty if none is wanted."""
    name = config.api_key_env
    if not name:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        raise ValueError(
            f"ChatClient: the environment variable {name} holds no key; set it, or leave api_key_env empty "
            "for an endpoint that wants none."
        )
    if any(not "!" <= character <= "~" for character in key):
        raise ValueError(
            f"ChatClient: the environment variable {name} holds a key with spaces, control or non-ASCII "
            "characters, which no header can carry (it is not shown); set it anew."
        )
    return key


def _check_url(url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or an IPv6 address that is none
        parts, is_usable = None, False
    if parts is not None and (parts.username is not None or parts.password is not None):
        raise ValueError(
            "EndpointConfig: base_url holds a user name or password; take it out, and name the variable that "
            "holds a key in api_key_env."
        )
    if not is_usable or not url.isprintable() or " " in url:
        raise ValueError(
            f"EndpointConfig: base_url must start with http:// or https:// and name a host, got {url!r}."
        )
