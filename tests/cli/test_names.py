"""dist names, and with --check what is there of each."""

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


def test_names(store: ContentStore) -> None:
    put(store, INDEX, OTHER)
    store.names.put(OTHER, descriptor(INDEX), source="x", platforms=(Platform.parse("linux/arm64"),))

    other, _ = dist("--output", "json", "--store", store.url, "names").json

    assert dist("names", "-q", DIST_STORE=store.url).lines == [OTHER, APP]
    assert (other["name"], other["source"], other["platforms"]) == (OTHER, "x", ["linux/arm64"])
    assert other["descriptor"] == descriptor(INDEX).to_json()


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_nothing_of_a_table_is_cut_or_wrapped_however_narrow_a_terminal_is_said_to_be(
    store: ContentStore, check: list[str]
) -> None:
    long = f"registry.example/{'/'.join(['team'] * 50)}:v1"
    put(store, IMAGE, long)

    result = dist("--store", store.url, "names", *check, long, APP, COLUMNS="20")

    head, *rows = result.lines
    assert head.split()[:2] == ["NAME", "DIGEST"]
    assert [row.split()[:2] for row in rows] == [[APP, IMAGE.root.digest], [long, IMAGE.root.digest]]


def test_names_that_are_asked_for(store: ContentStore) -> None:
    put(store, IMAGE, OTHER)

    result = dist("--store", store.url, "names", "-q", OTHER, "app", "app:1")

    assert (result.code, result.lines) == (1, [OTHER, APP])
    assert result.line == "dist: name app or docker.io/library/app:latest: not in the store; dist names lists all names"


def damage(store: ContentStore, name: str) -> Path:
    """Damage the record of a name, and say where it is."""
    record = Path(store._layout.name(name))
    record.write_bytes(b"{}")
    return record


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_a_damaged_name_is_told_and_the_others_are_listed(store: ContentStore, check: list[str]) -> None:
    put(store, IMAGE, OTHER)
    record = damage(store, OTHER)
    says = f"dist: name {OTHER}: damaged record {record} (record.descriptor: missing, expected an object)"

    for wanted in ([], ["app:1", OTHER]):
        result = dist("--store", store.url, "names", "-q", *check, *wanted)
        assert (result.code, result.lines) == (1, [APP])
        assert result.line == f"{says}; remove the name with dist rm '{OTHER}'"
    assert [name["name"] for name in dist("--store", store.url, "--output", "json", "names", *check).json] == [APP]
    assert dist("--store", store.url, "names", *check, "app:1").code == 0


def test_a_complete_image(store: ContentStore) -> None:
    result = dist("--store", store.url, "names", "--check", "app:1")

    assert (result.code, result.err) == (0, "")
    assert result.lines[0].split() == ["NAME", "DIGEST", "STATUS", "SIZE"]
    assert result.lines[1].split("  ") == [APP, IMAGE.root.digest, "complete (5/5)", size(ALL_BYTES)]


def test_an_image_that_lacks_a_layer(store: ContentStore) -> None:
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


def test_an_image_whose_root_is_missing(store: ContentStore) -> None:
    store.delete(Digest.parse(IMAGE.root.digest))

    result = dist("--store", store.url, "names", "--check")

    assert result.code == 1
    assert result.lines[1].split()[-2:] == ["unavailable", "-"]
    assert result.line == f"dist: {APP}: 1 descriptor missing in the store (manifest {IMAGE.root.digest})"


def test_of_an_index_that_counts_which_was_wanted(store: ContentStore) -> None:
    put_for(store, "linux/amd64", without=tuple(set(ARM64.descriptors) - set(AMD64.descriptors)))
    assert "complete (6/6)" in dist("--store", store.url, "names", "--check").lines[1]

    put_for(store, "linux/arm64", without=tuple(ARM64.descriptors))
    result = dist("--store", store.url, "names", "--check")
    assert (result.code, "incomplete (1/2)" in result.lines[1]) == (1, True)


def test_an_index_that_has_nothing_of_what_was_wanted(store: ContentStore) -> None:
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
        (LAYERS[0], 0, "complete"),  # layers are looked at, not read
    ],
)
def test_damage_is_told_and_the_others_are_looked_at(damaged: str, lost_bytes: int, status: str, store: ContentStore) -> None:
    put(store, INDEX, "z")
    blob = Path(store.url, "blobs", *damaged.split(":"))
    blob.chmod(0o644)
    blob.write_bytes(b"x" * (blob.stat().st_size - lost_bytes))

    result = dist("--store", store.url, "--output", "json", "names", "--check")

    assert [found["status"] for found in result.json] == [status, "complete"]
    assert result.code == (status != "complete")
    assert [damaged in line for line in result.err.splitlines()] == [True] * result.code
