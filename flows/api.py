"""Access to Prefect's API in a flow run, through the client of the run. Opening another client costs more than most calls."""

import time
from contextlib import AbstractContextManager

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.context import FlowRunContext, SettingsContext, get_settings_context
from prefect.exceptions import PrefectException, PrefectHTTPStatusError

from prefect_dist.ocispec.errors import Unavailable
from prefect_dist.transfer.cancellation import CancelToken, Stopped

# Prefect's own client retries for a minute, and a cancelled run would not end meanwhile.
_PATIENCE_S = 10.0
_PAUSE_S = 1.0
_ANSWER_S = 5.0
_RETRIES = 2

# Errors of calls to Prefect's API, for modules that do not know its HTTP client: the API cannot be reached, the API answers too
# late, and every failed call.
UNREACHABLE = (httpx.TransportError,)
SLOW = (httpx.ReadTimeout,)
CALL_ERRORS = (httpx.HTTPError, PrefectException)


class ApiUnavailable(Unavailable):
    """Prefect's API does not answer."""


def client() -> SyncPrefectClient:
    """Return the client of the current flow run. The client is thread-safe, and closed when the run ends."""
    context = FlowRunContext.get()
    if context is None or not isinstance(context.client, SyncPrefectClient):
        raise RuntimeError("expected to be called in a run of a synchronous flow")
    return context.client


def require_api(cancel: CancelToken) -> None:
    """Return once Prefect's API answers.

    Raises:
        ApiUnavailable: the API did not answer for ten seconds.
        Stopped: the run was cancelled meanwhile.
    """
    api, deadline = client(), time.monotonic() + _PATIENCE_S
    while (reason := _silence(api)) is not None:
        if time.monotonic() > deadline:
            raise ApiUnavailable(f"Prefect API {api.api_url} does not answer: {reason}")
        cancel.pause(_PAUSE_S)


def stop_without_api(cancel: CancelToken) -> None:
    """Cancel the run if Prefect's API does not answer for ten seconds."""
    try:
        cancel.check()
        require_api(cancel)
    except ApiUnavailable as exc:
        cancel.set(str(exc), cause=exc)
    except Stopped:
        return


def brief() -> AbstractContextManager[object]:
    """Return a block in which failed calls to Prefect's API are retried for some seconds, not for a minute."""
    return _limit_retries(_RETRIES)


def _limit_retries(times: int) -> AbstractContextManager[object]:
    """Return a block in which failed calls are retried `times` times. `temporary_settings` would take 40 ms of CPU."""
    context = get_settings_context()
    client = context.settings.client.model_copy(update={"max_retries": times})
    return SettingsContext(profile=context.profile, settings=context.settings.model_copy(update={"client": client}))


def _silence(api: SyncPrefectClient) -> str | None:
    """Return the reason why the API does not answer, or None if the API answers."""
    try:
        with _limit_retries(0):
            api.request("GET", "/health", timeout=_ANSWER_S)
    except PrefectHTTPStatusError as exc:
        return str(exc) if exc.response.is_server_error else None
    except UNREACHABLE as exc:
        return str(exc) or type(exc).__name__
    return None
