"""The commands delete and rm keep needed content, and continue after a failure."""

import json
import shlex
from pathlib import Path

import pytest

from prefect_dist.ocispec import Digest
from prefect_dist.storage import ContentStore, open_store
from tests import images
from tests.cli.dist import dist
from tests.storage.archives import content, names, put
from tests.storage.conformance import ingest

IMAGE = images.image(70)
MANIFEST = IMAGE.root.digest
CONFIG, *LAYERS = IMAGE.blobs
NAME = "docker.io/library/app:1"
MISSING = str(Digest.of(b"missing"))


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    store = open_store(str(tmp_path))
    put(store, IMAGE, NAME)
    store.update_index()
    return store


def test_delete_of_a_blob_without_a_name(store: ContentStore) -> None:
    free = [str(ingest(store, data)) for data in (b"one", b"two")]

    result = dist("--store", store.url, "delete", *free)

    assert (result.code, result.lines, result.err) == (0, free, "")
    assert set(content(store)) == set(IMAGE.descriptors)


@pytest.mark.parametrize("digest", [MANIFEST, CONFIG, LAYERS[-1]])
def test_delete_refuses_a_blob_that_a_name_needs(digest: str, store: ContentStore) -> None:
    result = dist("--store", store.url, "delete", digest)

    assert (result.code, result.out) == (1, b"")
    assert result.line == f"dist: blob {digest}: {NAME} needs it; --force deletes the blob anyway"
    assert digest in content(store)


def test_delete_by_force(store: ContentStore) -> None:
    assert dist("--store", store.url, "delete", "--force", CONFIG).lines == [CONFIG]
    assert CONFIG not in content(store)


def test_one_failure_does_not_stop_other_deletions(store: ContentStore) -> None:
    free = str(ingest(store, b"free"))

    result = dist("--store", store.url, "--output", "json", "delete", MISSING, CONFIG, free, free)

    assert result.code == 1
    assert [(outcome["digest"], outcome["status"]) for outcome in result.json] == [
        (MISSING, "failed"),
        (CONFIG, "failed"),
        (free, "deleted"),
    ]
    assert [f"dist: {outcome['error']}" for outcome in result.json if outcome["error"]] == result.err.splitlines()
    assert f"blob {MISSING}: not found" in result.err


def test_an_invalid_digest_stops_all_deletions(store: ContentStore) -> None:
    free = str(ingest(store, b"free"))

    assert dist("--store", store.url, "delete", free, "sha256:0").code == 2
    assert free in content(store)


def test_a_damaged_manifest_protects_blobs_that_it_may_need(store: ContentStore) -> None:
    free = str(ingest(store, b"free"))
    blob = Path(store.url, "blobs", *MANIFEST.split(":"))
    blob.chmod(0o644)
    blob.write_bytes(b"x" * IMAGE.root.size)

    refused = dist("--store", store.url, "delete", free)

    assert refused.code == 1
    assert refused.line.startswith(f"dist: blob {free}: {NAME} may need it, its content cannot be read (")
    assert dist("--store", store.url, "delete", "--force", free).code == 0


@pytest.mark.parametrize("command", ["rm", "rmi"])
def test_rm_removes_names_and_keeps_content(command: str, store: ContentStore) -> None:
    put(store, IMAGE, "as it was recorded")

    result = dist("--store", store.url, command, "app:1", "nothing", "as it was recorded")

    assert (result.code, result.lines) == (1, ["app:1", "as it was recorded"])
    assert result.line == "dist: name nothing or docker.io/library/nothing:latest: not in the store; dist names lists all names"
    assert names(store) == {}
    assert set(content(store)) == set(IMAGE.descriptors)
    assert json.loads(Path(store.url, "index.json").read_bytes())["manifests"] == []


def test_rm_removes_a_damaged_name(store: ContentStore) -> None:
    put(store, IMAGE, "kept")
    Path(store._layout.name(NAME)).write_bytes(b"damaged")
    remedy = dist("--store", store.url, "names", "-q").line.rpartition("with dist ")[2]

    result = dist("--store", store.url, *shlex.split(remedy))

    assert (result.code, result.lines, result.err) == (0, [NAME], "")
    assert list(names(store)) == ["kept"]
    assert len(json.loads(Path(store.url, "index.json").read_bytes())["manifests"]) == 1


def test_a_damaged_name_stops_all_deletions(store: ContentStore) -> None:
    Path(store._layout.name(NAME)).write_bytes(b"damaged")

    result = dist("--store", store.url, "delete", CONFIG)

    assert (result.code, result.line.endswith(f"; remove the name with dist rm {NAME}")) == (1, True)
    assert CONFIG in content(store)


def test_rm_writes_json(store: ContentStore) -> None:
    assert dist("--store", store.url, "--output", "json", "rm", NAME).json == [
        {"name": NAME, "status": "deleted", "error": None}
    ]


def test_rm_creates_no_store(tmp_path: Path) -> None:
    assert dist("--store", tmp_path / "none", "rm", "app").code == 1
    assert not (tmp_path / "none").exists()
