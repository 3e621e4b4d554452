"""Results of runs in Prefect. Only the runs of deployments store a result: a summary of the flow, and no results of tasks."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from prefect import get_run_logger
from prefect.context import FlowRunContext
from prefect.filesystems import NullFileSystem
from prefect.results import ResultRecord  # type: ignore[attr-defined]
from prefect.serializers import JSONSerializer, prefect_json_object_encoder

from prefect_dist.mirror.report import RunReport
from prefect_dist.mirror.run_result import RunFailed, RunSummary

if TYPE_CHECKING:
    from prefect.filesystems import WritableFileSystem

# Prefect imports these names when a result is read, so they are public ones that stay.
_SUMMARY, _ERRORS = "prefect_dist.RunSummary", "prefect_dist"
_SERIALIZER = JSONSerializer(object_encoder=f"{__name__}.encode")


def keep_no_task_results() -> "WritableFileSystem | None":
    """Keep the results of tasks of the current flow run in memory only. Return the previous result storage of the flow.

    `persist_result=False` does not write results either, but Prefect still resolves a storage path for each task: a fifth of
    the cost of a small task (docs/dev/adr/0004).
    """
    context = FlowRunContext.get()
    if context is None:
        return None
    storage = context.result_store.result_storage
    context.result_store.result_storage = cast("WritableFileSystem", NullFileSystem())
    return storage


def data_of_state(result: object, storage: "WritableFileSystem | None") -> object:
    """Return a result as the data of the final state, stored as a `RunSummary` if another process may read the result.

    Other processes may read the result of a deployment's run, and of a flow with `persist_result=True`. In the process of the
    run the data is the whole result. A failure to store the result is a warning, because the work is finished.
    """
    context = FlowRunContext.get()
    if context is None:
        return result
    if not (context.persist_result or (context.flow_run and context.flow_run.deployment_id)):
        record = context.result_store.create_result_record(result)
        return _OpaqueRecord(metadata=record.metadata, result=record.result)
    changed = {"result_storage": storage, "metadata_storage": None, "serializer": _SERIALIZER}
    store = context.result_store.model_copy(update=changed)
    try:
        record = store.create_result_record(result)
        store.persist_result_record(record)
    except Exception as exc:  # noqa: BLE001 - file systems raise many kinds
        get_run_logger().warning("the result of this run is not stored: %s", exc)
        return result
    return record


class _OpaqueRecord(ResultRecord[Any]):
    """A result in memory whose values Prefect does not visit.

    Prefect looks for futures in the data of the final state. For a report of 100,000 images, the search takes 14 s of CPU time
    and 150 MB of memory.
    """

    def __iter__(self) -> Iterator[tuple[str, Any]]:  # type: ignore[override]
        yield "metadata", self.metadata


def encode(value: object) -> Mapping[str, Any]:
    """Return the JSON object for a report or an error, in the form of Prefect's JSON decoder."""
    if isinstance(value, RunFailed):
        return {"__exc_type__": f"{_ERRORS}.{type(value).__name__}", "message": encode(value.report)}
    if isinstance(value, RunReport):
        value = RunSummary.of(value)
    if isinstance(value, RunSummary):
        return {"__class__": _SUMMARY, "data": asdict(value)}
    encoded: Mapping[str, Any] = prefect_json_object_encoder(value)
    return encoded
