"""The registries with metrics: those that a run contacts as targets, and no other places."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from prefect_dist.mirror.plan import Plan
from prefect_dist.mirror.registry_state import summarize_check, summarize_mirror
from prefect_dist.mirror.report import AuditRow, OrphanRow, RegistryState, RunReport, TargetRow
from prefect_dist.ocispec import Digest, Reference
from prefect_dist.ocispec.errors import Unavailable
from tests.mirror.planned import entries

SOURCE = Reference.parse("source.example/app:v1")


def report(*rows: Any) -> RunReport:
    return RunReport(flow="mirror", status="complete", store="/store", tasks=0, seconds=1, rows=rows)


def summarize(
    *rows: Any, sync: Sequence[dict[str, Any]] = (), problems: Mapping[str, Unavailable] | None = None, **lags: float
) -> dict[str, RegistryState]:
    """Return the states by host. `lags` are ages of pending changes, by the first part of a host below example."""
    now = datetime.now(UTC)
    pending = {Reference.parse(f"{name}.example/app:v1"): now - timedelta(seconds=age) for name, age in lags.items()}
    plan = Plan(images=(), problems=problems or {})
    return {one.host: one for one in summarize_mirror(report(*rows), plan, entries(*sync) if sync else (), pending)}


def failed_row(target: str) -> TargetRow:
    return TargetRow(source=SOURCE, target=Reference.parse(target), outcome="failed")


@pytest.mark.parametrize(
    "target",
    [
        "oci:/srv/mirror",
        "oci-archive:/srv/all.tar:registry.example",
        "oci:s3://bucket/mirror",
        "{{.Ref.Repository}}.example/app",
    ],
)
def test_an_entry_for_a_registry_names_no_invented_registry(target: str) -> None:
    sync = {"source": "source.example", "target": target, "type": "registry"}
    assert summarize(sync=[sync]) == {}


def test_layouts_have_no_state_however_many_fail() -> None:
    rows = [failed_row(f"oci:/srv/mirror/app{number}:v1") for number in range(100)]
    assert summarize(*rows, failed_row("target.example/app:v1")).keys() == {"target.example"}


def test_a_registry_that_only_gets_backups_has_no_state() -> None:
    sync = {
        "source": "source.example/app",
        "target": "target.example/app",
        "type": "repository",
        "backup": "backup.example/app:{{.Ref.Tag}}",
    }
    assert summarize(sync=[sync]).keys() == {"target.example"}


def test_an_entry_with_unknown_images_fails_at_its_registries() -> None:
    sync = {"source": "source.example/app", "targets": ["one.example/app", "oci:/srv/app"], "type": "repository"}
    (entry,) = entries(sync)
    found = summarize(sync=[sync], problems={entry.at: Unavailable("no answer")})
    assert {host: (one.failed, one.is_success) for host, one in found.items()} == {"one.example": (1, False)}


def test_a_registry_with_only_a_pending_change_has_a_lag() -> None:
    found = summarize(late=3600)
    assert found.keys() == {"late.example"}
    assert 3600 <= (found["late.example"].lag_s or 0) < 3700


def test_a_registry_with_only_a_failed_removal_is_no_success() -> None:
    target = Reference.parse("old.example/app:v1")
    row = OrphanRow(source=str(SOURCE), target=target, digest=Digest.of(b""), since=None, outcome="failed")
    found = summarize(row)
    assert {host: (one.failed, one.is_success) for host, one in found.items()} == {"old.example": (0, False)}


def test_a_check_has_states_of_registries_only() -> None:
    rows = [AuditRow(target=Reference.parse(one), outcome="damaged") for one in ("oci:/srv/app:v1", "target.example/app:v1")]
    states = summarize_check(report(*rows), ())
    assert [(one.host, one.failed, one.lag_s) for one in states] == [("target.example", 1, None)]
