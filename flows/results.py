"""Where Prefect would put the results of tasks: nowhere."""

from typing import TYPE_CHECKING, cast

from prefect.context import FlowRunContext
from prefect.filesystems import NullFileSystem

if TYPE_CHECKING:
    from prefect.filesystems import WritableFileSystem


def keep_no_results() -> None:
    """Have the tasks of the current flow run keep their results in memory alone.

    `persist_result=False` does not write them either, but Prefect still resolves for each task the path where it would: a fifth
    of what a small task costs (docs/adr/0004).
    """
    context = FlowRunContext.get()
    if context is not None:
        context.result_store.result_storage = cast("WritableFileSystem", NullFileSystem())
