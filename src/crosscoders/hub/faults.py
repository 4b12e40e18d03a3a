"""What can go wrong between here and the Hub, as builtin exceptions."""

import contextlib
from collections.abc import Iterator

_PASSING_STATUS = (408, 429)


@contextlib.contextmanager
def hub_errors(what: object) -> Iterator[None]:
    """Turn the exceptions of `huggingface_hub` and of its HTTP client into builtin ones.

    A repository, revision or file that does not exist is FileNotFoundError; a refused token or a private or
    gated repository is PermissionError; a server or a connection that fails is ConnectionError. All three are
    OSErrors; anything else, such as a full disk, passes as it is.

    Args:
        what: What was being done, for the message.
    """
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except HfHubHTTPError as err:
        raise _from_status(what, err) from err
    except OfflineModeIsEnabled as err:
        raise ConnectionError(
            f"{what}: the Hub may not be asked because HF_HUB_OFFLINE is set; unset it."
        ) from err
    except Exception as err:
        # An upload's failure arrives wrapped in a RuntimeError.
        cause = err.__cause__ if isinstance(err, RuntimeError) else err
        if isinstance(cause, HfHubHTTPError):
            raise _from_status(what, cause) from err
        if cause is None or not is_transport_error(cause):
            raise
        raise ConnectionError(
            f"{what}: the connection to the Hub failed ({type(cause).__name__}: {cause}); try again. What "
            "the cache holds can be had with local_files_only=True."
        ) from err


def is_transport_error(err: BaseException) -> bool:
    """Whether this is a failure of the HTTP client to connect, send or receive, timeouts included.

    Told by name: which client `huggingface_hub` uses (httpx, httpx2) depends on its version.
    """
    return any(cls.__name__ == "TransportError" and "httpx" in cls.__module__ for cls in type(err).__mro__)


def is_passing(err: BaseException) -> bool:
    """Whether trying the same again later may succeed."""
    status = _status(err)
    return is_transport_error(err) or status in _PASSING_STATUS or (status is not None and status >= 500)


def _status(err: BaseException) -> int | None:
    return getattr(getattr(err, "response", None), "status_code", None)


def _from_status(what: object, err: OSError) -> OSError:
    status, detail = _status(err), " ".join(str(err).split())[:300]
    if status in (401, 403):
        return PermissionError(
            f"{what}: the Hub refused ({status}); the repository does not exist, is private or gated, or the "
            f"token lacks the right. Pass token= or run `hf auth login`. ({detail})"
        )
    if status in (404, 410):
        return FileNotFoundError(
            f"{what}: the Hub has no such repository, revision or file ({status}). ({detail})"
        )
    if status is not None and (status in _PASSING_STATUS or status >= 500):
        return ConnectionError(f"{what}: the Hub failed ({status}); try again later. ({detail})")
    return OSError(f"{what}: the Hub answered {status}. ({detail})")
