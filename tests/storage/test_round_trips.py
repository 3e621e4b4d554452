"""The requests to an object store and their concurrency, with a real S3 server behind s3fs."""

import asyncio
import json
from collections.abc import Collection, Iterator
from typing import Any

import pytest

from prefect_dist.ocispec.children import children_reader
from prefect_dist.storage import ContentStore, open_store, presence
from prefect_dist.storage.presence import reachable_digests
from tests import images
from tests.peers.seaweedfs import S3Server
from tests.storage.archives import put

INDEX = images.index([images.image(900, layers=4), images.image(901, platform="linux/arm64", layers=4)])
_DEADLOCK_S = 20


@pytest.fixture
def store(s3: S3Server, request: pytest.FixtureRequest) -> Iterator[ContentStore]:
    with open_store(f"{s3.url}/{request.node.name}", options=s3.storage_options) as store:
        yield store


class RecordedRequests:
    """The requests by method and last part of their key.

    A request for a key in `together` is answered only when another such request with the same method is in flight.
    """

    def __init__(self, patch: pytest.MonkeyPatch, store: ContentStore, *, together: Collection[str] = ()) -> None:
        self.seen: list[tuple[str, str]] = []
        self._call, self._together = store._backend.fs._call_s3, together
        self._asked: dict[str, int] = {}
        self._met: dict[str, asyncio.Event] = {}
        patch.setattr(store._backend.fs, "_call_s3", self._record_call)

    async def _record_call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        key = kwargs.get("Key", "").rpartition("/")[2]
        self.seen.append((method, key))
        if key in self._together:
            met = self._met.setdefault(method, asyncio.Event())
            self._asked[method] = self._asked.get(method, 0) + 1
            if self._asked[method] > 1:
                met.set()
            await asyncio.wait_for(met.wait(), _DEADLOCK_S)
        return await self._call(method, *args, **kwargs)

    @property
    def methods(self) -> list[str]:
        return [method for method, _ in self.seen]


def hex_of(digest: str) -> str:
    return digest.partition(":")[2]


def test_siblings_are_looked_up_concurrently_and_once_each(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    root = put(store, INDEX, "name")
    recorded = RecordedRequests(monkeypatch, store, together=[hex_of(manifest.digest) for manifest in INDEX.manifests[:2]])

    found = presence.check(store, root, children=children_reader(store.manifest))

    assert found.is_complete
    assert [d.kind for d in found.present[:3]] == ["index", "manifest", "manifest"]
    assert sorted(recorded.methods) == ["get_object"] * 3 + ["head_object"] * len(INDEX.descriptors)
    assert len(set(recorded.seen)) == len(recorded.seen)


def test_required_content_is_looked_up_concurrently(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = [put(store, images.image(seed), f"name-{seed}") for seed in (902, 903)]
    RecordedRequests(monkeypatch, store, together=[root.digest.hex for root in roots])
    needed = {str(digest) for digest in reachable_digests(store, roots)}
    assert needed == {*images.image(902).descriptors, *images.image(903).descriptors}


def test_names_are_read_concurrently_with_one_request_each(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    root = put(store, INDEX, "name-0")
    store.names.put("name-1", root, source="x")
    recorded = RecordedRequests(
        monkeypatch, store, together=[store._layout.name(f"name-{n}").rpartition("/")[2] for n in (0, 1)]
    )
    assert [name.name for name in store.names] == ["name-0", "name-1"]
    assert sorted(recorded.methods) == ["get_object", "get_object", "list_objects_v2"]


def test_updating_the_index_reads_only_changed_names(
    store: ContentStore, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = put(store, INDEX, "name")
    for number in range(20):
        store.names.put(f"name-{number}", root, source="x")
    store.update_index()
    changed = [store.names.put(name, root, source="y").name for name in ("name-3", "new")]
    records = {store._layout.name(name).rpartition("/")[2] for name in changed}

    with open_store(store.url, options=s3.storage_options) as other:
        recorded = RecordedRequests(monkeypatch, other)
        other.update_index()
        listed = [entry["annotations"] for entry in json.loads(other._backend.fs.cat_file(other._layout.index))["manifests"]]

    assert {key for method, key in recorded.seen if method == "get_object"} == {"index.json", "index.names.json", *records}
    assert len(listed) == 22


def test_a_current_index_costs_two_requests_for_any_number_of_names(
    store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = put(store, INDEX, "name")
    for number in range(20):
        store.names.put(f"name-{number}", root, source="x")
    store.update_index()
    recorded = RecordedRequests(monkeypatch, store)
    store.update_index()
    assert sorted(recorded.seen) == [("get_object", "index.json"), ("list_objects_v2", "")]
