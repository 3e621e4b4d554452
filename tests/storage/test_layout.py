"""The location of a store and the layout of its files, checked by other tools."""

from pathlib import Path

import pytest

from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.ocispec.errors import InvalidInput, Unsupported
from prefect_dist.storage import ContentStore, open_store
from prefect_dist.storage.layout import Layout
from tests import images
from tests.peers import skopeo
from tests.storage.conformance import ingest

DIGEST = Digest.of(b"data")


def record(store: ContentStore, image: images.BuiltImage, name: str) -> None:
    for data in (*image.blobs.values(), *(manifest.raw for manifest in image.manifests)):
        ingest(store, data)
    digest, media_type, size = image.root
    store.names.put(name, Descriptor(media_type=media_type, digest=Digest.parse(digest), size=size), source="tests")


@pytest.mark.parametrize("name", ["latest", "docker.io/library/redis:7", "registry.example:5000/team/app:v1.2"])
def test_skopeo_finds_an_image_by_its_name(tmp_path: Path, name: str) -> None:
    store, image = open_store(str(tmp_path / "store")), images.image(1)
    record(store, image, name)
    record(store, images.image(2), "another")
    store.update_index()
    summary = skopeo.inspect(f"oci:{tmp_path / 'store'}:{name}")
    assert summary["Digest"] == image.root.digest
    assert summary["Layers"] == list(image.blobs)[1:]


def test_skopeo_copies_a_whole_index_from_a_store(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    index = images.index(images.image(1, platform=platform) for platform in ("linux/amd64", "linux/arm64"))
    record(store, index, "both")
    store.update_index()
    skopeo.copy(f"oci:{tmp_path / 'store'}:both", f"dir:{tmp_path / 'copy'}")
    assert (tmp_path / "copy/manifest.json").read_bytes() == index.manifests[-1].raw
    assert {digest.removeprefix("sha256:") for digest in index.blobs} <= {file.name for file in (tmp_path / "copy").iterdir()}


def test_a_store_reads_a_layout_of_skopeo(tmp_path: Path) -> None:
    store, image = open_store(str(tmp_path / "store")), images.image(1)
    record(store, image, "one")
    store.update_index()
    skopeo.copy(f"oci:{tmp_path / 'store'}:one", f"oci:{tmp_path / 'copy'}:one")
    copy = open_store(str(tmp_path / "copy"))
    assert {str(info.digest) for info in copy.walk()} == set(image.descriptors)
    for info in copy.walk():
        assert len(b"".join(copy.chunks(info.digest))) == info.size


@pytest.mark.parametrize("root", ["", "/", "/a", "/a/blobs"])
def test_the_path_of_a_blob_and_its_digest_are_inverses(root: str) -> None:
    layout = Layout(root.rstrip("/"))
    for digest in (DIGEST, Digest.of(b"data", algorithm="sha512")):
        assert layout.blob(digest) == f"{root.rstrip('/')}/blobs/{digest.algorithm}/{digest.hex}"
        assert layout.digest(layout.blob(digest)) == digest


@pytest.mark.parametrize("path", ["sha256", "sha256/", f"sha256/{DIGEST.hex}/x", f"sha256/{DIGEST.hex.upper()}", f"{DIGEST}"])
def test_other_paths_have_no_digest(path: str) -> None:
    assert Layout("/a").digest(f"/a/blobs/{path}") is None


def test_only_paths_of_data_files_are_ingests() -> None:
    layout = Layout("/a")
    assert layout.is_ingest(layout.ingest("ref"))
    assert not layout.is_ingest(layout.ingest("ref") + ".json")
    assert not layout.is_ingest(layout.ingest("ref") + "\n")
    assert not layout.is_ingest("/a/ingest/strange")


def test_the_path_of_a_name_is_parsed() -> None:
    assert Layout("/a").name("docker.io/library/redis:7").startswith("/a/names/docker.io%2Flibrary%2Fredis%3A7-")


# Locations


@pytest.mark.parametrize(
    "location",
    ["{}/store", "{}/store/", "{}/store//", "file://{}/store", "file://{}/store/", "local://{}/store", "{}/x/../store"],
)
def test_one_location_has_several_spellings(tmp_path: Path, location: str) -> None:
    (tmp_path / "x").mkdir()
    ingest(open_store(location.format(tmp_path)), b"data")
    assert (tmp_path / "store/blobs/sha256" / DIGEST.hex).read_bytes() == b"data"


@pytest.mark.parametrize("location", ["store", "./store", "deep/below/store", ".", "../store", "[a]*?%20 é"])
def test_a_relative_path_starts_at_the_working_directory_at_opening(
    tmp_path: Path, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    store = open_store(location)
    monkeypatch.chdir("/")
    ingest(store, b"data")
    assert (tmp_path / "here" / location / "blobs/sha256" / DIGEST.hex).read_bytes() == b"data"


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ingest(open_store("~/a store"), b"data")
    assert (tmp_path / "a store/blobs/sha256" / DIGEST.hex).exists()


@pytest.mark.parametrize("url", ["memory://", "memory:///", "memory:///a//", "memory://[a]*?"])
def test_a_memory_store_may_have_any_path(url: str) -> None:
    store = open_store(url)
    try:
        ingest(store, b"data")
        assert [info.digest for info in store.walk()] == [DIGEST]
        assert not list(store.active())
    finally:
        store._backend.fs.store.clear()


def test_the_root_of_a_file_system_may_be_a_store() -> None:
    assert open_store("/")._layout.blob(DIGEST) == f"/blobs/sha256/{DIGEST.hex}"


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("", InvalidInput),
        ("nope://x", InvalidInput),
        ("~no-such-user-here/store", InvalidInput),
        ("reference://", Unsupported),
        ("/srv/a::b", Unsupported),
        ("simplecache::file:///tmp/x", Unsupported),
        ("data:,x", InvalidInput),
    ],
)
def test_an_unusable_location_is_refused_with_a_reason(url: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^store{' ' if url else ''}{url}: [^\n]+$"):
        open_store(url)
