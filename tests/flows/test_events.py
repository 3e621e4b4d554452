"""Events of runs are those that docs/reference/events.md lists, and the shipped automations react to them."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from prefect_dist.mirror.progress import notify_also
from prefect_dist.mirror.render import summary_line
from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import NotFound
from prefect_dist.storage import open_store
from prefect_dist.transfer.cancellation import CancelToken, use_token
from prefect_dist.transfer.events import Event, StepDone
from tests import images
from tests.fakes.faults import Answer, Fault, Flip, Refuse
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import Mirrors, image, results
from tests.peers.prefect import PrefectServer
from tests.peers.processes import PATIENCE_S, poll_until
from tests.peers.webhook import Webhook, webhook
from tests.storage.conformance import Place, blob_path

TOP = Path(__file__).parents[2]
OLD, NEW, OTHER = images.image(3300, layers=1), images.image(3301, layers=1), images.image(3302, layers=1)
# | `event` | when | resource | related, by role | payload |
_ROW = re.compile(r"^\| `((?:image|content)\.[a-z]+)` \|[^|]*\| (`[^|]*`) \| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)


@pytest.fixture(autouse=True)
def _api(prefect: PrefectServer) -> Iterator[None]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect.url}):
        yield


@pytest.fixture
def events_of(prefect: PrefectServer) -> Callable[[str], list[dict[str, Any]]]:
    """Returns the events of a flow run by this package, once Prefect has recorded a later event."""
    from prefect.events import emit_event

    def find_events(**wanted: Any) -> list[dict[str, Any]]:
        return list(prefect.post("/events/filter", {"filter": wanted, "limit": 50})["events"])

    def of(run: str) -> list[dict[str, Any]]:
        last = f"tests.{uuid4()}"
        emit_event("tests.last", resource={"prefect.resource.id": last})
        assert poll_until(lambda: bool(find_events(any_resource={"id": [last]})))
        found = find_events(event={"prefix": ["image.", "content."]}, any_resource={"id": [f"prefect.flow-run.{run}"]})
        return found[::-1]

    return of


def documented_keys() -> dict[str, tuple[set[str], set[str]]]:
    """Return the roles of related resources and the keys of the payload of each event in the document."""
    rows = _ROW.findall((TOP / "docs/reference/events.md").read_text())
    return {
        event: (set(re.findall("`(.*?)`", roles)), set(re.findall("`(.*?)`", payload))) for event, _, roles, payload in rows
    }


def assert_documented(event: dict[str, Any]) -> None:
    """Check that an event has the documented roles and keys."""
    roles, payload = documented_keys()[event["event"]]
    related = [one for one in event["related"] if one["prefect.resource.id"].startswith("prefect-dist.")]
    assert {one["prefect.resource.role"] for one in related} == roles
    assert event["payload"].keys() == payload
    assert {"flow-run", "flow"} <= {one["prefect.resource.role"] for one in event["related"]}


def test_each_changed_or_failed_image_emits_an_event_and_unchanged_images_emit_none(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, events_of: Callable[[str], list[dict[str, Any]]]
) -> None:
    for tag, built in (("new", NEW), ("changed", NEW), ("unchanged", OTHER), ("broken", OTHER)):
        images.load(source, "app", built, tag)
    for tag, built in (("changed", OLD), ("unchanged", OTHER)):
        images.load(target, "app", built, tag)
    target.inject(Fault(method="PUT", path="/v2/app/manifests/broken", nth=1, action=Refuse(403)))
    sync = [image(source, target, f"app:{tag}") for tag in ("new", "changed", "unchanged", "broken", "none")]

    mirrors.run(*sync, dry_run=True)
    assert events_of(mirrors.flow_run) == []
    mirrors.run(*sync)

    events = events_of(mirrors.flow_run)
    for event in events:
        assert_documented(event)
    name = f"{target.host}/app"
    by_target = {event["resource"]["prefect.resource.id"].removeprefix("prefect-dist.image."): event for event in events}
    assert {key.removeprefix(name): event["event"] for key, event in by_target.items()} == {
        ":new": "image.mirrored",
        ":changed": "image.changed",
        ":broken": "image.failed",
        ":none": "image.failed",
    }
    assert len(events) == len(by_target)
    assert by_target[f"{name}:changed"]["payload"] == {
        "source": f"{source.host}/app:changed",
        "target": f"{name}:changed",
        "reason": "changed",
        "digest": NEW.root.digest,
        "previous": OLD.root.digest,
    }
    assert "denied" in by_target[f"{name}:broken"]["payload"]["error"]
    assert {
        one["prefect.resource.role"]: one["prefect.resource.id"] for one in by_target[f"{name}:new"]["related"]
    }.items() >= {
        ("source", f"prefect-dist.image.{source.host}/app:new"),
    }

    mirrors.run(*sync[:4])
    assert [event["resource"]["prefect.resource.name"] for event in events_of(mirrors.flow_run)] == [f"{name}:broken"]
    mirrors.run(*sync[:4])
    assert events_of(mirrors.flow_run) == []


def test_a_stopped_run_emits_events_of_its_publications_and_no_failures(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, events_of: Callable[[str], list[dict[str, Any]]]
) -> None:
    for tag, built in (("v1", NEW), ("v2", OTHER)):
        images.load(source, "app", built, tag)
    cancel = CancelToken()

    def stop_after_step(event: Event) -> None:
        if isinstance(event, StepDone):
            cancel.request("asked to end")

    with use_token(cancel), notify_also(stop_after_step):
        report = mirrors.run(*(image(source, target, f"app:{tag}") for tag in ("v1", "v2")), concurrency=1)

    by_target = results(report)
    assert report.status == "stopped"
    assert sorted(by_target.values()) == ["added", "failed"]
    (event,) = events_of(mirrors.flow_run)
    assert (event["event"], by_target[event["payload"]["target"].partition("/")[2]]) == ("image.mirrored", "added")


def test_a_repaired_target_emits_mirrored_and_a_target_that_is_still_damaged_emits_failed(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, events_of: Callable[[str], list[dict[str, Any]]]
) -> None:
    for tag, built in (("v1", NEW), ("v2", OTHER)):
        images.load(source, "app", built, tag)
    mirrors.run(*(image(source, target, f"app:{tag}") for tag in ("v1", "v2")))
    target.untag("app", "v1")
    target.inject(Fault(method="HEAD", path="/v2/app/manifests/v2", nth=None, action=Answer(404)))

    assert mirrors.check(repair=True).status == "failed"

    name = f"{target.host}/app"
    assert sorted((one["event"], one["payload"]["target"].removeprefix(name)) for one in events_of(mirrors.flow_run)) == [
        ("image.failed", ":v2"),
        ("image.mirrored", ":v1"),
    ]


def test_an_event_of_corrupt_content_names_the_place(
    prefect: PrefectServer, tmp_path: Path, events_of: Callable[[str], list[dict[str, Any]]]
) -> None:
    assert prefect.url
    from prefect_dist.flows.fetch import fetch
    from prefect_dist.flows.verify import verify

    place = Place(url=str(tmp_path / "store"))
    layer = list(NEW.blobs)[-1]
    with FakeRegistry() as registry:
        images.load(registry, "app", NEW, "v1")
        registry.inject(Fault(path=f".*/blobs/{layer}", nth=1, action=Flip(3)))
        fetched = fetch([f"{registry.host}/app:v1"], place.url, return_state=True)
        assert fetched.is_completed()  # the second attempt fetched the correct bytes
        (met,) = events_of(str(fetched.state_details.flow_run_id))
    assert_documented(met)
    assert met["resource"]["prefect.resource.id"] == f"prefect-dist.content.{layer}"
    assert (met["payload"]["found"], met["payload"]["place"]) == ("on its way", f"{registry.host}/app")

    place.plant(blob_path(Digest.parse(layer)), b"wrong")
    verified = verify(place.url, return_state=True)
    assert verified.is_failed()
    (found,) = events_of(str(verified.state_details.flow_run_id))
    assert_documented(found)
    assert found["resource"] == met["resource"]
    assert (found["payload"]["found"], found["payload"]["place"]) == ("in the store", open_store(place.url).url)


def test_a_corrupt_manifest_in_the_plan_of_a_mirror_is_an_event_of_its_flow_run(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, events_of: Callable[[str], list[dict[str, Any]]]
) -> None:
    images.load(source, "app", NEW, "v1")
    source.inject(Fault(method="GET", path=f".*/manifests/{NEW.root.digest}", nth=1, action=Flip(3)))
    mirrors.run(image(source, target, "app:v1"), dry_run=True)
    (corrupt,) = [event for event in events_of(mirrors.flow_run) if event["event"] == "content.corrupt"]
    assert_documented(corrupt)
    assert (corrupt["payload"]["digest"], corrupt["payload"]["place"]) == (NEW.root.digest, f"{source.host}/app")


def test_no_event_is_lost_among_thousands(prefect: PrefectServer) -> None:
    from prefect import flow

    from prefect_dist.flows.prefect_events import emit_failure
    from prefect_dist.ocispec import Reference

    many = 3000

    @flow
    def emit_many() -> None:
        source = Reference.parse("a.example/app:v1")
        for number in range(many):
            target = Reference.parse(f"many.example/app:v{number}")
            emit_failure(source, target, digest=None, errors=[NotFound("not found")])

    emit_many()

    def count_recorded() -> int:
        body = {
            "filter": {"event": {"name": ["image.failed"]}, "resource": {"id_prefix": ["prefect-dist.image.many.example/"]}}
        }
        return int(prefect.post("/events/filter", body)["total"])

    assert poll_until(lambda: count_recorded() == many)


def create_automations(name: str, block_id: str, directory: Path, url: str) -> list[str]:
    """Create the automations of a shipped file, as docs/reference/events.md describes, and return their ids."""
    path = directory / name
    path.write_text((TOP / "automations" / name).read_text().replace("BLOCK_ID", block_id))
    argv = [sys.executable, "-m", "prefect", "automation", "create", "--from-file", str(path)]
    done = subprocess.run(
        argv, check=False, capture_output=True, text=True, timeout=PATIENCE_S, env={**_environment(), "PREFECT_API_URL": url}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"with id\s+([0-9a-f-]{36})", done.stdout)


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "COLUMNS": "400"}


@pytest.fixture
def listener() -> Iterator[Webhook]:
    with webhook() as listener:
        yield listener


@pytest.fixture
def create_automation(prefect: PrefectServer, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Creates automations, and deletes them after the test."""
    ids: list[str] = []

    def make(name: str, block_id: str) -> None:
        ids.extend(create_automations(name, block_id, tmp_path, prefect.url))

    yield make
    for one in ids:
        prefect.delete(f"/automations/{one}")


def test_the_automation_for_a_changed_image_calls_a_webhook(
    mirrors: Mirrors,
    source: FakeRegistry,
    target: FakeRegistry,
    listener: Webhook,
    create_automation: Callable[..., None],
) -> None:
    from prefect.blocks.webhook import Webhook as Block
    from prefect.types import SecretDict
    from pydantic import SecretStr

    headers = SecretDict({"Content-Type": "application/json", "Authorization": "Bearer hook"})
    block_id = Block(url=SecretStr(f"{listener.url}/changed"), headers=headers).save("image-changed", overwrite=True)
    create_automation("image-changed.yaml", str(block_id))
    for tag, built in (("new", OTHER), ("v1", NEW)):
        images.load(source, "app", built, tag)
    images.load(target, "app", OLD, "v1")

    mirrors.run(image(source, target, "app:new"), image(source, target, "app:v1"))

    (call,) = listener.wait_for_requests(at_least=1)
    assert (call.path, call.headers["Authorization"]) == ("/changed", "Bearer hook")
    body = json.loads(call.body)
    assert body.pop("occurred").startswith("20")
    assert body == {
        "target": f"{target.host}/app:v1",
        "source": f"{source.host}/app:v1",
        "digest": NEW.root.digest,
        "previous": OLD.root.digest,
    }


def test_the_automation_for_failures_sends_notifications(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, listener: Webhook, create_automation: Callable[..., None]
) -> None:
    from prefect import tags
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    block = CustomWebhookNotificationBlock(
        name="alerts",
        url=f"{listener.url}/alert",
        headers={},
        cookies={},
        json_data={"subject": "{{subject}}", "body": "{{body}}"},
    )
    create_automation("failure.yaml", str(block.save("alerts", overwrite=True)))

    with tags("dist"):
        report = mirrors.run(image(source, target, "app:none"))

    calls = [json.loads(call.body) for call in listener.wait_for_requests(at_least=2)]
    by_subject = {call["subject"]: call["body"] for call in calls}
    assert by_subject[f"{target.host}/app:none failed"] == str(report.errors[0].error)
    run = by_subject["mirror mirror: Failed"]
    assert summary_line(report) in run
    assert mirrors.flow_run in run
