"""The command names, with and without --check."""

from pathlib import Path

import pytest

from prefect_dist.ocispec import Digest, Platform
from prefect_dist.ocispec.units import size
from prefect_dist.storage import ContentStore, open_store
from tests import images
from tests.cli.dist import dist
from tests.storage.archives import descriptor, put

IMAGE = images.image(80)
CONFIG, *LAYERS = IMAGE.blobs
ALL_BYTES = IMAGE.root.size + sum(map(len, IMAGE.blobs.values()))
AMD64, ARM64 = images.image(81), images.image(82, platform="linux/arm64")
INDEX = images.index([AMD64, ARM64])
APP, OTHER = "docker.io/library/app:1", "as it was recorded"


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    store = open_store(str(tmp_path))
    put(store, IMAGE, APP)
    return store


def put_for(store: ContentStore, platform: str, *, without: tuple[str, ...] = ()) -> None:
    put(store, INDEX, APP, without=without)
    store.names.put(APP, descriptor(INDEX), source="tests", platforms=(Platform.parse(platform),))


def test_names_lists_names(store: ContentStore) -> None:
    put(store, INDEX, OTHER)
    store.names.put(OTHER, descriptor(INDEX), source="x", platforms=(Platform.parse("linux/arm64"),))

    other, _ = dist("--output", "json", "--store", store.url, "names").json

    assert dist("names", "-q", DIST_STORE=store.url).lines == [OTHER, APP]
    assert (other["name"], other["source"], other["platforms"]) == (OTHER, "x", ["linux/arm64"])
    assert other["descriptor"] == descriptor(INDEX).to_json()


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_a_table_in_a_pipe_ignores_the_width_of_the_terminal(store: ContentStore, check: list[str]) -> None:
    long = f"registry.example/{'/'.join(['team'] * 50)}:v1"
    put(store, IMAGE, long)

    result = dist("--store", store.url, "names", *check, long, APP, COLUMNS="20")

    head, *rows = result.lines
    assert head.split()[:2] == ["NAME", "DIGEST"]
    assert [row.split()[:2] for row in rows] == [[APP, IMAGE.root.digest], [long, IMAGE.root.digest]]


def test_names_with_arguments(store: ContentStore) -> None:
    put(store, IMAGE, OTHER)

    result = dist("--store", store.url, "names", "-q", OTHER, "app", "app:1")

    assert (result.code, result.lines) == (1, [OTHER, APP])
    assert result.line == "dist: name app or docker.io/library/app:latest: not in the store; dist names lists all names"


def damage(store: ContentStore, name: str) -> Path:
    """Damage the record of a name, and return its path."""
    record = Path(store._layout.name(name))
    record.write_bytes(b"{}")
    return record


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_a_damaged_name_is_reported_and_other_names_are_listed(store: ContentStore, check: list[str]) -> None:
    put(store, IMAGE, OTHER)
    record = damage(store, OTHER)
    says = f"dist: name {OTHER}: damaged record {record} (record.descriptor: missing, expected an object)"

    for wanted in ([], ["app:1", OTHER]):
        result = dist("--store", store.url, "names", "-q", *check, *wanted)
        assert (result.code, result.lines) == (1, [APP])
        assert result.line == f"{says}; remove the name with dist rm '{OTHER}'"
    assert [name["name"] for name in dist("--store", store.url, "--output", "json", "names", *check).json] == [APP]
    assert dist("--store", store.url, "names", *check, "app:1").code == 0


def test_check_of_a_complete_image(store: ContentStore) -> None:
    result = dist("--store", store.url, "names", "--check", "app:1")

    assert (result.code, result.err) == (0, "")
    assert result.lines[0].split() == ["NAME", "DIGEST", "STATUS", "SIZE"]
    assert result.lines[1].split("  ") == [APP, IMAGE.root.digest, "complete (5/5)", size(ALL_BYTES)]


def test_check_of_an_image_without_a_layer(store: ContentStore) -> None:
    put(store, INDEX, OTHER)
    assert dist("--store", store.url, "delete", "--force", LAYERS[0]).code == 0
    rest = size(ALL_BYTES - len(IMAGE.blobs[LAYERS[0]]))

    result = dist("--store", store.url, "names", "--check")
    _, found = dist("--store", store.url, "--output", "json", "names", "--check").json

    assert result.code == 1
    assert result.line == f"dist: {APP}: 1 descriptor missing in the store (layer {LAYERS[0]})"
    assert "complete (11/11)" in result.lines[1]
    assert [cell.strip() for cell in result.lines[2].split("  ") if cell][2:] == [
        "incomplete (4/5)",
        f"{rest} / {size(ALL_BYTES)}",
    ]
    assert (found["status"], found["present"], [each["digest"] for each in found["missing"]]) == ("incomplete", 4, LAYERS[:1])
    assert f"dist: {found['error']}" == result.line
    assert dist("--store", store.url, "names", "--check", "-q").lines == [OTHER]


def test_check_of_an_image_without_its_root(store: ContentStore) -> None:
    store.delete(Digest.parse(IMAGE.root.digest))

    result = dist("--store", store.url, "names", "--check")

    assert result.code == 1
    assert result.lines[1].split()[-2:] == ["unavailable", "-"]
    assert result.line == f"dist: {APP}: 1 descriptor missing in the store (manifest {IMAGE.root.digest})"


def test_check_of_an_index_counts_only_the_fetched_platforms(store: ContentStore) -> None:
    put_for(store, "linux/amd64", without=tuple(set(ARM64.descriptors) - set(AMD64.descriptors)))
    assert "complete (6/6)" in dist("--store", store.url, "names", "--check").lines[1]

    put_for(store, "linux/arm64", without=tuple(ARM64.descriptors))
    result = dist("--store", store.url, "names", "--check")
    assert (result.code, "incomplete (1/2)" in result.lines[1]) == (1, True)


def test_check_of_an_index_without_the_fetched_platform(store: ContentStore) -> None:
    put_for(store, "linux/s390x")

    result = dist("--store", store.url, "names", "--check")

    assert (result.code, result.lines[1].split()[-3:]) == (1, ["incomplete", "(?)", "-"])
    assert "no manifest for linux/s390x; the index has 'linux/amd64', 'linux/arm64'" in result.line


@pytest.mark.parametrize(
    ("damaged", "lost_bytes", "status"),
    [
        (IMAGE.root.digest, 0, "incomplete"),
        (IMAGE.root.digest, 1, "incomplete"),
        (LAYERS[0], 1, "incomplete"),
        (LAYERS[0], 0, "complete"),  # a check of names does not read layers
    ],
)
def test_damaged_content_is_reported_and_other_names_are_checked(
    damaged: str, lost_bytes: int, status: str, store: ContentStore
) -> None:
    put(store, INDEX, "z")
    blob = Path(store.url, "blobs", *damaged.split(":"))
    blob.chmod(0o644)
    blob.write_bytes(b"x" * (blob.stat().st_size - lost_bytes))

    result = dist("--store", store.url, "--output", "json", "names", "--check")

    assert [found["status"] for found in result.json] == [status, "complete"]
    assert result.code == (status != "complete")
    assert [damaged in line for line in result.err.splitlines()] == [True] * result.code
