"""Talking to the Hub: what is tried again, how long to wait, and one line that says why it failed in the end."""

import importlib
import json
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

_utils = importlib.import_module("huggingface_hub.utils")  # it lists its names only when they are asked for
_TransportError: type[Exception] = _utils.httpx.TransportError  # httpx in its version 1, httpx2 in version 2

ATTEMPTS = 6
"""Times that an action is tried before it is given up; the client retries single requests besides."""

_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0  # seconds; doubled from one attempt to the next
_TRANSIENT = {408, 409, 412, 429}  # and every 5xx; 409 and 412: somebody else was writing, so look again

_NOT_UNDERSTOOD = (LookupError, TypeError, AttributeError, ArithmeticError, AssertionError)
"""What the client raises at an answer without the keys that it needs."""

_LONGEST_REASON = 300  # characters

_REMEDIES = {
    400: "the Hub rejects the request",
    401: "the Hub does not accept the token; set HF_TOKEN to a valid one or run `hf auth login`",
    403: "the token may not do this; use one with write access to that namespace",
    404: "there is no such repository or revision, or the token may not see it",
    409: "somebody else keeps writing to it; try again later",
    412: "somebody else keeps committing to it; try again later",
    413: "the Hub refuses a file of this size",
    429: "the Hub asks for fewer requests; try again later",
}


class HubError(OSError):
    """The Hub could not do, or did not do, what it was asked; the message is one line."""


class NotOnHubError(HubError, FileNotFoundError):
    """The Hub has no such repository or revision, or does not show it."""


def patiently(action: Callable[[], T], what: str) -> T:
    """Do something on the Hub, and again while it fails for a reason that may pass.

    The action may have been done already, in part or wholly: it looks first. `what` names it in messages.

    Raises:
        NotOnHubError: There is no such repository or revision.
        HubError: It failed for good, or too often; or the machine is set to be offline.
        ValueError: The Hub rejects what it was given.
    """
    attempt = 1
    while True:
        try:
            return action()
        except (HfHubHTTPError, _TransportError, json.JSONDecodeError, RuntimeError) as error:
            cause = _cause(error)
            wait = _wait(cause, attempt)
            if wait is None or attempt == ATTEMPTS:
                missing = isinstance(cause, RepositoryNotFoundError | RevisionNotFoundError)
                kind = NotOnHubError if missing else HubError
                raise kind(f"{what}: {reason(cause)}") from None  # the chain would show addresses that are signed
            logger.warning("%s: %s; trying again in %.0f s", what, reason(cause), wait)
            time.sleep(wait)
            attempt += 1
        except OfflineModeIsEnabled:
            raise HubError(f"{what}: HF_HUB_OFFLINE is set, and this needs the Hub; unset it") from None
        except _NOT_UNDERSTOOD as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"[:_LONGEST_REASON]
            raise HubError(
                f"{what}: an answer is none of the Hub's ({said}); try again, and see whether HF_ENDPOINT is a Hub"
            ) from error
        except ValueError as error:
            raise ValueError(f"{what}: {' '.join(str(error).split())}") from None
        except OSError as error:
            if error.errno is not None or "\n" not in str(error):
                raise
            # What the client says in lines: a file that came in part.
            raise HubError(f"{what}: {' '.join(str(error).split())}") from None


def _cause(error: BaseException) -> BaseException:
    # The client wraps what happened in one of its upload threads into a RuntimeError.
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _wait(error: BaseException, attempt: int) -> float | None:
    # Seconds before another attempt; None if none would help.
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status not in _TRANSIENT and status < 500:
            return None
        if (asked := _asked_to_wait(error.response.headers)) is not None:
            return asked
    return float(min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (attempt - 1)))


def _asked_to_wait(headers: Any) -> float | None:
    limit = _utils.parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    seconds = headers.get("Retry-After", "")
    return float(seconds) if seconds.isdigit() else None


def reason(error: BaseException) -> str:
    """Say in one line why the Hub, or the way there, failed, and what would help."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        remedy = _REMEDIES.get(status, f"{constants.ENDPOINT} failed")
        if isinstance(error, GatedRepoError):
            remedy = "the repository is gated; ask for access on its page, and set HF_TOKEN to a token that has it"
        elif isinstance(error, RepositoryNotFoundError):  # the Hub's status is 401 for one without a token
            remedy = _REMEDIES[404]
        said = " ".join((error.server_message or "").split()) if status < 500 else ""  # a gateway's page is no message
        return f"{remedy} (status {status}{f': {said}' if said else ''})"
    if isinstance(error, json.JSONDecodeError):
        return f"{constants.ENDPOINT} answered with something else than JSON"
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"the connection to {constants.ENDPOINT} failed ({first})"
