"""The session that the tasks of this package need in the flow of a user."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prefect import get_run_logger

from prefect_dist.flows.parameters import Network, make_resources
from prefect_dist.flows.prefect_events import emit_corruption
from prefect_dist.mirror.progress import LogWriter
from prefect_dist.transfer.events import combine_listeners
from prefect_dist.transfer.session import Session, open_session


@contextmanager
def session(store: str, *, store_options: Mapping[str, Any] | None = None, network: Network | None = None) -> Iterator[Session]:
    """Open a content store and connections to registries for tasks that are called in this block.

    `store`, `store_options` and `network` are the same as the parameters of the flows. Tasks that are submitted in the block
    must end in the block. After `recorder.keep(root)`, gc keeps the content below a root until the block ends. After
    `recorder.record(reference, root)`, gc keeps the content as long as the store has that name.

    Raises:
        InvalidInput: the store cannot be used, or a block does not exist.
    """
    spec = make_resources(store, store_options or {}, network).make_session()
    notify = combine_listeners(LogWriter(get_run_logger()), emit_corruption)
    with open_session(spec, notify=notify) as opened:
        yield opened
