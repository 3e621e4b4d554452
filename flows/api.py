"""Prefect's API for what runs in a flow: through the client that the run has. Another would cost more than what it is asked."""

from prefect.client.orchestration import SyncPrefectClient
from prefect.context import FlowRunContext


def client() -> SyncPrefectClient:
    """The client of the current flow run. Thread-safe; open as long as the run goes."""
    context = FlowRunContext.get()
    if context is None or not isinstance(context.client, SyncPrefectClient):
        raise RuntimeError("expected to be called in a run of a synchronous flow")
    return context.client
