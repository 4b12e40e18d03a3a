"""The endpoint client against a fake endpoint: answers, failures, cache, costs and the key."""

import datetime
import email.utils
import json
import traceback

import pytest

from crosscoders.errors import CrosscodersError
from crosscoders.reasoning import ChatClient, EndpointConfig, EndpointError
from tests.reasoning.fake_endpoint import FakeEndpoint, completion, slow

KEY = "sk-very-secret"


def question(text: str = "what?") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def client_of(endpoint: FakeEndpoint, tmp_path, *, waits: list[float] | None = None, **changes) -> ChatClient:
    settings = {"timeout_s": 5.0, "max_retries": 2, **changes}
    config = EndpointConfig(base_url=endpoint.url, model="fake", **settings)
    sleep = (lambda s: None) if waits is None else waits.append
    return ChatClient(config, cache=tmp_path / "cache", sleep=sleep)


def test_each_question_is_paid_for_once(tmp_path):
    with FakeEndpoint(lambda request, n: completion(f"answer {n}")).serving() as endpoint:
        client = client_of(endpoint, tmp_path)
        first = client.ask(question(), str)
        again = client_of(endpoint, tmp_path).ask(question(), str)
        other = client.ask(question("who?"), str)
    assert (first, again, other) == ("answer 1", "answer 1", "answer 2")
    assert endpoint.requests[0]["path"] == "/v1/chat/completions"
    assert client.report().n_calls == len(endpoint.requests) == 2


def test_another_model_or_temperature_is_another_question(tmp_path):
    with FakeEndpoint(lambda request, n: completion(f"answer {n}")).serving() as endpoint:
        answers = [
            client_of(endpoint, tmp_path, **changes).ask(question(), str)
            for changes in ({}, {"temperature": 0.5}, {"max_output_tokens": 7}, {})
        ]
    assert answers == ["answer 1", "answer 2", "answer 3", "answer 1"]


def test_rate_limits_are_waited_for_as_long_as_the_endpoint_asks(tmp_path):
    limited = (429, {"Retry-After": "7"}, b"{}")
    waits: list[float] = []
    with FakeEndpoint(lambda request, n: limited if n == 1 else completion("ok")).serving() as endpoint:
        client = client_of(endpoint, tmp_path, waits=waits)
        assert client.ask(question(), str) == "ok"
    assert waits == [7.0]
    assert client.report().n_retries == 1


def test_retry_after_may_be_a_date(tmp_path):
    at = email.utils.format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30))
    waits: list[float] = []
    with FakeEndpoint(
        lambda request, n: (503, {"Retry-After": at}, b"") if n == 1 else completion("ok")
    ).serving() as endpoint:
        client_of(endpoint, tmp_path, waits=waits).ask(question(), str)
    assert 25 < waits[0] <= 30


def test_an_endpoint_that_asks_for_too_long_is_given_up(tmp_path):
    endpoint = FakeEndpoint(lambda request, n: (429, {"Retry-After": "3600"}, b""))
    with endpoint.serving(), pytest.raises(EndpointError, match="3600 s"):
        client_of(endpoint, tmp_path).ask(question(), str)
    assert len(endpoint.requests) == 1


def test_waits_double_and_end(tmp_path):
    waits: list[float] = []
    with FakeEndpoint(lambda request, n: (500, {}, b"")).serving() as endpoint:
        client = client_of(endpoint, tmp_path, waits=waits, max_retries=3)
        with pytest.raises(EndpointError, match="status 500"):
            client.ask(question(), str)
    assert waits == [1.0, 2.0, 4.0]
    assert client.report().n_failed == 1


def test_a_timeout_and_a_dropped_connection_are_tried_again(tmp_path):
    def behave(request, n):
        if n == 1:
            return slow(0.5)
        return None if n == 2 else completion("ok")

    with FakeEndpoint(behave).serving() as endpoint:
        client = client_of(endpoint, tmp_path, timeout_s=0.2)
        assert client.ask(question(), str) == "ok"
    assert client.report().n_calls == 3


def test_garbage_is_tried_again_then_counted_and_never_cached(tmp_path):
    bodies = [(200, {}, b"<html>"), (200, {}, b'{"choices": []}'), completion("no number")]
    with FakeEndpoint(lambda request, n: bodies[(n - 1) % 3]).serving() as endpoint:
        client = client_of(endpoint, tmp_path)
        with pytest.raises(EndpointError, match="of no use"):
            client.ask(question(), int)
    assert (client.report().n_garbage, client.report().n_failed) == (3, 1)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_refusal_is_final_and_not_tried_again(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_KEY", KEY)
    refused = (401, {}, f"bad key {KEY}".encode())
    endpoint = FakeEndpoint(lambda request, n: refused)
    with endpoint.serving(), pytest.raises(EndpointError, match="401") as caught:
        client_of(endpoint, tmp_path, api_key_env="FAKE_KEY").ask(question(), str)
    assert caught.value.is_final
    assert KEY not in str(caught.value)
    assert len(endpoint.requests) == 1


def test_the_key_goes_into_the_header_and_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_KEY", KEY)
    with FakeEndpoint(lambda request, n: completion("ok")).serving() as endpoint:
        client = client_of(endpoint, tmp_path, api_key_env="FAKE_KEY")
        client.ask(question(), str)
    assert endpoint.headers[0]["Authorization"] == f"Bearer {KEY}"
    kept = [path.read_text() for path in (tmp_path / "cache").iterdir()]
    assert len(kept) == 1
    assert KEY not in json.dumps(endpoint.requests) + kept[0] + repr(client.config)


def test_a_redirect_does_not_carry_the_key_away(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_KEY", KEY)
    with FakeEndpoint(lambda request, n: completion("stolen")).serving() as thief:
        away = (302, {"Location": thief.url + "/chat/completions"}, b"")
        endpoint = FakeEndpoint(lambda request, n: away)
        with endpoint.serving(), pytest.raises(EndpointError, match="302"):
            client_of(endpoint, tmp_path, api_key_env="FAKE_KEY").ask(question(), str)
    assert thief.requests == []


def test_a_missing_key_is_said_before_anything_is_sent(tmp_path, monkeypatch):
    monkeypatch.delenv("FAKE_KEY", raising=False)
    endpoint = FakeEndpoint(lambda request, n: completion("ok"))
    with endpoint.serving(), pytest.raises(ValueError, match="FAKE_KEY"):
        client_of(endpoint, tmp_path, api_key_env="FAKE_KEY")
    assert endpoint.requests == []


@pytest.mark.parametrize("name", ["", None])
def test_no_name_of_a_key_sends_none(tmp_path, monkeypatch, name):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeEndpoint(lambda request, n: completion("ok")).serving() as endpoint:
        client_of(endpoint, tmp_path, api_key_env=name).ask(question(), str)
        client_of(endpoint, tmp_path).ask(question("who?"), str)
    assert len(endpoint.headers) == 2
    assert all("Authorization" not in headers for headers in endpoint.headers)


def test_a_key_is_stripped_and_one_that_no_header_can_carry_is_refused_unseen(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_KEY", f" {KEY}\n")
    with FakeEndpoint(lambda request, n: completion("ok")).serving() as endpoint:
        client_of(endpoint, tmp_path, api_key_env="FAKE_KEY").ask(question(), str)
        assert endpoint.headers[0]["Authorization"] == f"Bearer {KEY}"
        for bad in ("sk-one two", "sk-one\r\nHost: x", "sk-\u20ac"):
            monkeypatch.setenv("FAKE_KEY", bad)
            with pytest.raises(ValueError, match="FAKE_KEY") as caught:
                client_of(endpoint, tmp_path, api_key_env="FAKE_KEY")
            assert "sk-" not in str(caught.value)


def test_a_key_in_place_of_its_variable_is_refused_unseen():
    with pytest.raises(ValueError, match="api_key_env") as caught:
        EndpointConfig(base_url="http://x", model="m", api_key_env=KEY)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "reply",
    [
        (200, {}, f"<html>{KEY}</html>".encode()),
        (200, {}, ("x" * 110 + KEY).encode()),
        completion(f"your key is {KEY}"),
        completion("x" * 115 + KEY),
        (400, {}, ("x" * 490 + KEY).encode()),
        (403, {}, KEY.replace("-", "\\u002d").encode()),
        (500, {}, KEY.encode()),
    ],
)
def test_no_text_of_an_endpoint_shows_the_key(tmp_path, monkeypatch, caplog, reply):
    monkeypatch.setenv("FAKE_KEY", KEY)
    endpoint = FakeEndpoint(lambda request, n: reply)
    with caplog.at_level("DEBUG"), endpoint.serving(), pytest.raises(EndpointError) as caught:
        client_of(endpoint, tmp_path, api_key_env="FAKE_KEY").ask(question(), int)
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert KEY[:8] not in shown


def test_an_answer_that_holds_the_key_is_kept_without_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_KEY", KEY)
    with FakeEndpoint(lambda request, n: completion(f"key {KEY}")).serving() as endpoint:
        assert client_of(endpoint, tmp_path, api_key_env="FAKE_KEY").ask(question(), str) == "key ***"
    assert KEY not in next((tmp_path / "cache").iterdir()).read_text()


@pytest.mark.parametrize(("code", "is_final"), [(400, False), (413, False), (422, False), (404, True)])
def test_only_refusals_of_the_whole_endpoint_are_final(tmp_path, code, is_final):
    endpoint = FakeEndpoint(lambda request, n: (code, {}, b"too long"))
    with endpoint.serving(), pytest.raises(EndpointError, match=str(code)) as caught:
        client_of(endpoint, tmp_path).ask(question(), str)
    assert isinstance(caught.value, CrosscodersError)
    assert caught.value.is_final == is_final
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("asked", ["nan", "inf", "-5", "soon"])
def test_a_retry_after_that_says_nothing_is_ignored(tmp_path, asked):
    waits: list[float] = []
    limited = (429, {"Retry-After": asked}, b"")
    with FakeEndpoint(lambda request, n: limited if n == 1 else completion("ok")).serving() as endpoint:
        client_of(endpoint, tmp_path, waits=waits).ask(question(), str)
    assert waits == [1.0]


def test_no_more_calls_are_sent_than_allowed(tmp_path):
    with FakeEndpoint(lambda request, n: completion("ok")).serving() as endpoint:
        client = client_of(endpoint, tmp_path, max_calls=2)
        for text in ("a", "b", "a"):
            client.ask(question(text), str)
        with pytest.raises(EndpointError, match="max_calls") as caught:
            client.ask(question("c"), str)
    assert caught.value.is_final
    assert len(endpoint.requests) == 2


def test_an_estimate_says_whether_there_is_a_price(tmp_path):
    endpoint = FakeEndpoint(lambda request, n: completion("ok"))
    endpoint.url = "http://localhost"
    assert "no price given" in str(client_of(endpoint, tmp_path).estimate([question()]))
    priced = client_of(endpoint, tmp_path, price_per_million_input=1e6).estimate([question()])
    assert "cost at most about 12" in str(priced + priced)


def test_a_damaged_cache_file_is_asked_anew(tmp_path):
    with FakeEndpoint(lambda request, n: completion(str(n))).serving() as endpoint:
        client = client_of(endpoint, tmp_path)
        client.ask(question(), int)
        next((tmp_path / "cache").iterdir()).write_text("{")
        assert client.ask(question(), int) == 2


def test_estimates_count_what_is_not_cached_and_send_nothing(tmp_path):
    prices = {"price_per_million_input": 2.0, "price_per_million_output": 4.0, "characters_per_token": 4.0}
    with FakeEndpoint(lambda request, n: completion("ok")).serving() as endpoint:
        client = client_of(endpoint, tmp_path, max_output_tokens=50, **prices)
        client.ask(question(), str)
        estimate = client.estimate([question(), question("x" * 400), question("x" * 400)])
        assert len(endpoint.requests) == 1
    assert (estimate.n_calls, estimate.n_cached) == (1, 2)
    assert (estimate.input_tokens, estimate.output_tokens) == (104, 50)
    assert estimate.cost == pytest.approx((104 * 2 + 50 * 4) / 1e6)
    assert client.report().cost == pytest.approx((100 * 2 + 10 * 4) / 1e6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_url": "ftp://x"}, "base_url"),
        ({"model": ""}, "model"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"max_retries": -1}, "max_retries"),
        ({"max_calls": 0}, "max_calls"),
        ({"base_url": "http://user:word@x"}, "base_url"),
        ({"base_url": "http://"}, "base_url"),
    ],
)
def test_settings_out_of_range_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        EndpointConfig(**{"base_url": "http://x", "model": "m", **change})
