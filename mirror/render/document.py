"""Reports as JSON documents. docs/reference/json.md lists the keys."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

from prefect_dist.mirror.report import (
    AuditRow,
    BlobRow,
    FlowName,
    LeftoverRow,
    NameRow,
    OrphanRow,
    Row,
    RunReport,
    TargetRow,
    UnpackRow,
)
from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer.image_report import ImageReport

if TYPE_CHECKING:
    from prefect_dist.mirror.plan import Plan

_MIRROR = {"targets": TargetRow, "orphaned": OrphanRow}
# The keys of each flow's rows.
_ROWS: Mapping[FlowName, Mapping[str, type[Row]]] = {
    "fetch": {"images": ImageReport},
    "pull": {"images": ImageReport, "unpacked": UnpackRow},
    "push": {"targets": TargetRow},
    "copy": {"targets": TargetRow},
    "mirror": _MIRROR,
    "seed": _MIRROR,
    "check": {"targets": AuditRow},
    "verify": {"blobs": BlobRow, "names": NameRow},
    "gc": {"blobs": BlobRow, "leftovers": LeftoverRow, "names": NameRow},
}


def to_json(report: RunReport, flow_run_id: str | None) -> dict[str, Any]:
    """Return the JSON document of a run. A run without Prefect has no `flow_run_id`."""
    return {
        "flow_run_id": flow_run_id,
        "flow": report.flow,
        "status": report.status,
        "seconds": round(report.seconds, 3),
        "store": report.store,
        "tasks": report.tasks,
        "dry_run": report.is_dry,
        "counts": dict(report.counts),
        "errors": [
            {"object": one.object, "message": str(one.error), "descriptor": _plain(one.descriptor)} for one in report.errors
        ],
        "notes": list(report.notes),
        "quotas": {host: asdict(quota) for host, quota in report.quotas.items()},
        **({} if report.plan is None else {"plan": _plan_json(report.plan)}),
        **{key: list(map(_row_json, report.select(kind))) for key, kind in _ROWS[report.flow].items()},
    }


def _plan_json(plan: "Plan") -> dict[str, Any]:
    from prefect_dist.mirror.render.plans import plan_json  # noqa: PLC0415 - a fetch needs no modules of plans

    return plan_json(plan)


def _row_json(row: Row) -> dict[str, Any]:
    """Return a row with the names of the fields as keys. Images also have computed values."""
    found = {field.name: _plain(getattr(row, field.name)) for field in fields(row)}
    if not isinstance(row, ImageReport):
        return found
    found["digest"] = found.pop("root")
    del found["failures"]
    errors = [failure.message for failure in row.failures]
    counts = {"descriptors": row.descriptors, "failed": row.failed}
    return {**found, "outcome": row.outcome, **counts, "errors": list(dict.fromkeys(errors))}


def _plain(value: Any) -> Any:
    """Return a value of a row as a JSON value."""
    if isinstance(value, Descriptor):
        return str(value.digest)
    if isinstance(value, Reference | Digest | DistError):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, tuple):  # of errors, or of text
        return list(map(str, value))
    return value
