"""Divided runs next to another run with the same targets, and with a store that refuses writes for some time."""

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import images
from tests.fakes.aws import AwsRelay
from tests.fakes.faults import Call, Fault
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import find_missing
from tests.flows.reports import error_lines, outcomes
from tests.flows.thread_shards import DividedMirrors
from tests.peers.seaweedfs import S3Server

APPS = {f"app{number}": images.image(8200 + number, layers=2, layer_bytes=100_000) for number in range(4)}
# botocore retries a request three times, within 7 s.
BUSY_S = 10.0


@pytest.fixture
def entry(source: FakeRegistry, target: FakeRegistry) -> dict[str, Any]:
    """An entry for all repositories of the source."""
    for name, built in APPS.items():
        images.load(source, name, built, "v1")
    return {"source": source.host, "type": "registry", "target": target.host}


@dataclass(frozen=True, slots=True)
class BusyStore:
    """A content store on S3 behind a relay."""

    url: str
    options: dict[str, Any]
    relay: AwsRelay


@pytest.fixture
def busy_store(s3: S3Server) -> Iterator[BusyStore]:
    with AwsRelay(s3.endpoint) as relay:
        yield BusyStore(f"{s3.url}/{uuid.uuid4().hex}", s3.storage_options | {"endpoint_url": relay.endpoint}, relay)


def test_a_store_that_refuses_writes_for_some_time_loses_nothing(
    busy_store: BusyStore, source: FakeRegistry, target: FakeRegistry, entry: dict[str, Any], tmp_path: Path
) -> None:
    mirrors, relay = DividedMirrors(tmp_path), busy_store.relay
    run = partial(mirrors.run, entry, place=busy_store.url, options=busy_store.options)

    def refuse() -> None:
        relay.is_busy = True
        threading.Timer(BUSY_S, setattr, (relay, "is_busy", False)).start()

    source.inject(Fault(path="/v2/app1/blobs/.*", action=Call(refuse)))
    first = run()

    assert relay.refusals > 0
    assert first.status == "failed"
    assert {name for name, outcome in outcomes(first).items() if outcome == "failed"}
    ends = {line.rpartition(": ")[2] for line in error_lines(first)}
    assert ends == {"the service is busy (Please reduce your request rate); run again later"}
    relay.is_busy = False
    again = run()
    assert again.status == "complete", error_lines(again)
    assert [name for name, built in APPS.items() if find_missing(target, name, built, "v1")] == []
    assert {record["mirrored"] is None for record in mirrors.read_lock().values()} == {False}


@pytest.mark.parametrize("names", [("lock.json", "lock.json"), ("first.json", "second.json")], ids=["one lock", "two locks"])
def test_two_parents_with_the_same_targets_at_once_lose_and_tear_nothing(
    target: FakeRegistry, entry: dict[str, Any], tmp_path: Path, names: tuple[str, str]
) -> None:
    """Prefect admits one run per configuration. Two commands, or two configurations, have no common limit."""
    parents = [DividedMirrors(tmp_path / name) for name in ("first", "second")]
    for one in parents:
        one.config.parent.mkdir(exist_ok=True)
    locks = [tmp_path / name for name in names]

    def run(number: int) -> Any:
        place = str(tmp_path / "store")
        return parents[number].run(entry, place=place, name=f"run-{number}", lock=str(locks[number]))

    with ThreadPoolExecutor(2) as executor:
        reports = list(executor.map(run, range(2)))

    assert [one.status for one in reports] == ["complete", "complete"], [error_lines(one) for one in reports]
    assert [name for name, built in APPS.items() if find_missing(target, name, built, "v1")] == []
    expected = {f"{target.host}/{name}:v1": built.root.digest for name, built in APPS.items()}
    for parent, lock in zip(parents, locks, strict=True):
        parent.lock = lock
        records = parent.read_lock()
        assert {name: record["digest"] for name, record in records.items()} == expected
        assert {record["mirrored"] is None for record in records.values()} == {False}
    assert not any(path.is_file() for path in (tmp_path / "store" / "runs").rglob("*.json"))
