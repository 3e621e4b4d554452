"""The commands gc and verify: their warnings, and their errors for damaged names."""

from pathlib import Path

import pytest

from prefect_dist.storage import ContentStore, open_store
from tests import images
from tests.cli.dist import Result, dist, dist_direct
from tests.peers.prefect import PrefectServer
from tests.peers.seaweedfs import S3Server
from tests.storage.archives import content, put
from tests.storage.conformance import ingest

IMAGE = images.image(850)
NAME, OTHER = "docker.io/library/app:1", "docker.io/library/app:2"


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    store = open_store(str(tmp_path / "store"))
    put(store, IMAGE, NAME)
    put(store, IMAGE, OTHER)
    Path(store._layout.name(OTHER)).write_bytes(b"damaged")
    return store


def test_gc_fails_for_a_damaged_name_with_a_remedy(store: ContentStore) -> None:
    free = str(ingest(store, b"free"))

    result = dist_direct("--store", store.url, "--output", "json", "gc", "--grace", "0")

    assert result.code == 1
    assert result.line.startswith(f"dist: name {OTHER}: damaged record {store._layout.name(OTHER)} (record: not JSON ")
    assert result.line.endswith(f"; remove the name with dist rm {OTHER}")
    assert free in content(store)


def test_verify_reports_a_damaged_name_and_continues(store: ContentStore, prefect: PrefectServer) -> None:
    assert prefect.url
    result = dist("--store", store.url, "--output", "json", "verify", "--repair", "all")

    assert result.code == 1
    assert (result.json["counts"]["ok"], result.json["names"]) == (len(IMAGE.descriptors), [])
    assert "unreferenced" not in result.json["counts"]
    assert result.line.endswith(f"; remove the name with dist rm {OTHER}")


def test_gc_without_a_grace_period_needs_no_warning_on_a_disk_or_on_s3(s3: S3Server, tmp_path: Path) -> None:
    store = open_store(f"{s3.url}/grace", options=s3.storage_options)
    put(store, IMAGE, NAME)

    def gc(*arguments: str) -> Result:
        where = ("--store", store.url, "--store-option", f"endpoint_url={s3.endpoint}", "--output", "json")
        return dist_direct(*where, "gc", *arguments, AWS_ACCESS_KEY_ID=s3.key, AWS_SECRET_ACCESS_KEY=s3.secret)

    short, long = gc("--grace", "0"), gc("--grace", "24h")

    for result in (short, long):
        assert (result.code, result.err) == (0, "")
        assert (result.json["counts"]["kept"], result.json["names"]) == (len(IMAGE.descriptors), [])
    open_store(str(tmp_path)).prepare()
    assert dist_direct("--store", tmp_path, "--output", "json", "gc", "--grace", "0").err == ""


def test_verify_shows_its_progress(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    put(store, IMAGE, NAME)
    count = len(IMAGE.descriptors)

    result = dist_direct("--store", store.url, "verify")

    assert result.code == 0
    hashed = [line for line in result.err.splitlines() if " hashed, " in line]
    assert [line.partition(", ")[0] for line in hashed] == [f"0 of {count} blobs hashed", f"{count} of {count} blobs hashed"]
