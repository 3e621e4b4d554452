"""Export: the exact content of images, reproducible bytes, and archives that skopeo and umoci can read."""

import gzip
import io
import itertools
import json
import subprocess
import tracemalloc
from pathlib import Path

import pytest

from prefect_dist.ocispec import Descriptor, Digest, Platform
from prefect_dist.ocispec.errors import Corrupt, InvalidInput, NotFound
from prefect_dist.storage import ContentStore, open_store
from prefect_dist.storage.archive import export_images, import_images
from tests import images
from tests.peers import skopeo
from tests.peers.processes import require
from tests.storage.archives import content, descriptor, entries_of, export_to_bytes, import_archive, memory_store, names, put
from tests.storage.conformance import Place, blob_path, ingest, noise

ONE, TWO, BOTH = "docker.io/library/one:1", "registry.example:5000/team/two:v2", "ghcr.io/a/both:3"
NAMES = ("org.opencontainers.image.ref.name", "io.containerd.image.name")


def both() -> images.BuiltImage:
    return images.index(images.image(seed, platform=platform) for seed, platform in ((1, "linux/amd64"), (3, "linux/arm64")))


def fill(store: ContentStore) -> None:
    put(store, images.image(1), ONE)
    put(store, images.image(2, docker=True), TWO)
    put(store, both(), BOTH)


def save(store: ContentStore, path: Path, *wanted: str) -> Path:
    path.write_bytes(export_to_bytes(store, *wanted))
    return path


def test_an_archive_has_exactly_the_blobs_of_its_images_each_once(store: ContentStore) -> None:
    fill(store)
    ingest(store, b"of nobody")
    files = list(entries_of(export_to_bytes(store, ONE, BOTH)))
    wanted = {blob_path(Digest.parse(digest)) for image in (images.image(1), both()) for digest in image.descriptors}
    assert files == ["oci-layout", "index.json", "manifest.json", *sorted(wanted)]


def test_an_export_followed_by_an_import_gives_the_same_content(place: Place, store: ContentStore) -> None:
    fill(store)
    data, target = export_to_bytes(store, ONE, TWO, BOTH), memory_store()
    outcomes = import_archive(target, data)
    assert [(outcome.name, outcome.error) for outcome in outcomes] == [(ONE, None), (BOTH, None), (TWO, None)]
    assert (content(target), names(target)) == (content(store), names(store))
    assert export_to_bytes(target, ONE, TWO, BOTH) == data
    assert export_to_bytes(place.open(), TWO, BOTH, ONE, TWO) == data


def test_the_index_names_images_for_skopeo_and_for_containerd(store: ContentStore) -> None:
    put(store, images.image(1), ONE)
    files = entries_of(export_to_bytes(store, ONE))
    (entry,) = json.loads(files["index.json"])["manifests"]
    assert entry == {**descriptor(images.image(1)).to_json(), "annotations": dict.fromkeys(NAMES, ONE)}
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}


def test_an_image_with_several_names_is_listed_under_each(store: ContentStore) -> None:
    pinned = f"docker.io/library/one@{images.image(1).root.digest}"
    wanted = [ONE, "docker.io/library/one:latest", pinned, f"{ONE}@{images.image(1).root.digest}"]
    for name in wanted:
        put(store, images.image(1), name)
    files = entries_of(export_to_bytes(store, *wanted))
    assert len(json.loads(files["index.json"])["manifests"]) == 4
    (item,) = json.loads(files["manifest.json"])  # docker load refuses names without a tag or with a digest
    assert item["RepoTags"] == [ONE, "docker.io/library/one:latest"]


def test_docker_s_list_has_only_images_of_one_platform(store: ContentStore) -> None:
    fill(store)
    arm = images.image(3, platform="linux/arm64")
    put(store, images.index([images.image(4), arm]), "ghcr.io/a/sparse:1", without=images.image(4).descriptors)
    put(store, images.artifact(5), "ghcr.io/a/artifact:1")
    items = json.loads(entries_of(export_to_bytes(store, *names(store)))["manifest.json"])
    assert {tuple(item["RepoTags"]) for item in items} == {(ONE,), (TWO,), ("ghcr.io/a/sparse:1",)}
    (sparse,) = (item for item in items if item["RepoTags"] == ["ghcr.io/a/sparse:1"])
    config, *layers = (blob_path(Digest.parse(digest)) for digest in arm.blobs)
    assert (sparse["Config"], sparse["Layers"]) == (config, layers)


def test_manifests_of_platforms_that_were_not_fetched_are_left_out(store: ContentStore) -> None:
    """An image that was fetched for some platforms is complete without the manifests of other platforms."""
    absent = images.image(3, platform="linux/arm64").descriptors
    put(store, both(), BOTH, without=absent)
    files = entries_of(export_to_bytes(store, BOTH))
    assert {blob_path(Digest.parse(digest)) for digest in absent}.isdisjoint(files)
    target = memory_store()
    assert [outcome.error for outcome in import_archive(target, export_to_bytes(store, BOTH))] == [None]
    assert content(target) == content(store)


def test_an_import_records_which_platforms_of_an_index_are_present(store: ContentStore) -> None:
    amd, arm = (images.image(seed, platform=platform) for seed, platform in ((1, "linux/amd64"), (3, "linux/arm64")))
    attested = images.index([amd, arm, images.attestation(4, amd)])
    put(store, attested, ONE, without=[*arm.descriptors, *images.attestation(4, amd).descriptors])
    put(store, images.index([amd]), BOTH)
    target = memory_store()
    import_archive(target, export_to_bytes(store, ONE, BOTH))
    sparse, complete = target.names.get(ONE), target.names.get(BOTH)
    assert (sparse.platforms, sparse.lacks_attestations) == ((Platform.parse("linux/amd64"),), True)
    assert (complete.platforms, complete.lacks_attestations) == (None, False)


@pytest.mark.parametrize("position", range(5))
def test_nothing_is_written_for_an_incomplete_image(store: ContentStore, position: int) -> None:
    fill(store)
    gone = images.image(1).descriptors[position]
    store.delete(Digest.parse(gone))
    file = io.BytesIO()
    with pytest.raises(NotFound, match=rf"^{ONE}: 1 descriptor missing in the store \(\w+ {gone}\)$"):
        export_images(store, [TWO, ONE], file)
    assert file.getvalue() == b""


def test_an_index_without_a_present_manifest_is_refused(store: ContentStore) -> None:
    put(store, both(), BOTH, without=[digest for digest in both().descriptors if digest != both().root.digest])
    with pytest.raises(NotFound, match="none of its manifests is in the store"):
        export_to_bytes(store, BOTH)


def test_an_unknown_name_is_refused_before_anything_is_written(store: ContentStore) -> None:
    fill(store)
    file = io.BytesIO()
    with pytest.raises(NotFound, match=r"^name docker.io/library/none:1: not found$"):
        export_images(store, [ONE, "docker.io/library/none:1"], file)
    assert file.getvalue() == b""


def test_a_damaged_blob_fails_the_export(place: Place, store: ContentStore) -> None:
    fill(store)
    digest, data = list(images.image(1).blobs.items())[-1]
    place.plant(blob_path(Digest.parse(digest)), bytes(len(data)))
    with pytest.raises(Corrupt, match=digest):
        export_to_bytes(store, ONE)


def test_a_list_that_is_too_large_for_importers_is_not_written() -> None:
    store = memory_store()
    root = put(store, images.image(1), ONE)
    for number in range(2):
        noted = Descriptor(media_type=root.media_type, digest=root.digest, size=root.size, annotations=(("note", "x" * 2**21),))
        store.names.put(f"docker.io/library/one:{number}", noted, source="tests")
    with pytest.raises(InvalidInput, match=r"expected at most 4194304 bytes in index\.json, got \d+; export fewer images"):
        export_to_bytes(store, *names(store))


def test_a_large_blob_is_exported_in_bounded_memory(tmp_path: Path) -> None:
    store, target = open_store(str(tmp_path / "a")), open_store(str(tmp_path / "b"))
    put(store, images.image(1, layers=1, layer_bytes=48 * 2**20), ONE)
    archive = tmp_path / "a.tar"
    tracemalloc.start()
    try:
        with archive.open("wb") as file:
            export_images(store, [ONE], file)
        with archive.open("rb") as file:
            outcomes = import_images(target, file, source="a.tar")
        assert tracemalloc.get_traced_memory()[1] < 24 * 2**20
    finally:
        tracemalloc.stop()
    assert [outcome.error for outcome in outcomes] == [None]


# Other tools


@pytest.mark.parametrize("name", [ONE, BOTH])
def test_skopeo_finds_an_exported_image_by_its_name(tmp_path: Path, name: str) -> None:
    store = open_store(str(tmp_path / "store"))
    fill(store)
    archive = save(store, tmp_path / "a.tar", ONE, TWO, BOTH)
    image = {ONE: images.image(1), BOTH: both()}[name]
    assert skopeo.inspect(f"oci-archive:{archive}:{name}", raw=True) == json.loads(image.manifests[-1].raw)
    skopeo.copy(f"oci-archive:{archive}:{name}", f"dir:{tmp_path / 'copy'}")
    copied = {file.name: file.read_bytes() for file in (tmp_path / "copy").iterdir()}
    assert copied["manifest.json"] == image.manifests[-1].raw
    for digest, data in image.blobs.items():
        assert copied[digest.removeprefix("sha256:")] == data


@pytest.mark.parametrize(("name", "image"), [(ONE, images.image(1)), (TWO, images.image(2, docker=True))])
def test_skopeo_reads_docker_s_list_of_the_same_archive(tmp_path: Path, name: str, image: images.BuiltImage) -> None:
    """This includes images with Docker's media types, which skopeo's `oci-archive:` refuses."""
    store = open_store(str(tmp_path / "store"))
    fill(store)
    archive = save(store, tmp_path / "a.tar", ONE, TWO, BOTH)
    skopeo.copy(f"docker-archive:{archive}:{name}", f"dir:{tmp_path / 'copy'}")
    copied = {file.read_bytes() for file in (tmp_path / "copy").iterdir()}
    config, *layers = image.blobs.values()
    assert {config, *map(gzip.decompress, layers)} < copied


def test_umoci_unpacks_an_exported_layout(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    put(store, images.image(1), ONE)
    archive = save(store, tmp_path / "a.tar", ONE)
    (tmp_path / "layout").mkdir()
    subprocess.run(["tar", "xf", archive, "-C", tmp_path / "layout"], check=True)
    skopeo.copy(f"oci:{tmp_path / 'layout'}:{ONE}", f"oci:{tmp_path / 'tagged'}:x")  # umoci requires a tag without slashes
    subprocess.run(
        [require("umoci", "umoci"), "raw", "unpack", "--rootless", "--image", f"{tmp_path / 'tagged'}:x", tmp_path / "out"],
        check=True,
    )
    files = {file.name: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert sorted(map(len, files.values())) == [1000, 1000, 1000]


# Entries


def test_tar_lists_the_archive_without_warnings(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    fill(store)
    put(store, images.image(7), "docker.io/library/seven:7")
    ingest(store, noise(10), algorithm="sha512")
    archive = save(store, tmp_path / "a.tar", *names(store))
    listed = subprocess.run(["tar", "tvf", archive, "--numeric-owner", "--full-time"], capture_output=True, check=True)
    assert listed.stderr == b""
    for line in listed.stdout.decode().splitlines():
        assert line.startswith("-rw-r--r-- 0/0 "), line


def test_a_blob_with_a_sha512_digest_is_exported_and_imported(store: ContentStore) -> None:
    layer = Descriptor(media_type=images.OCI_LAYER, digest=Digest.of(b"layer", algorithm="sha512"), size=5)
    config = Descriptor(media_type=images.OCI_CONFIG, digest=Digest.of(b"{}"), size=2)
    raw = json.dumps({"schemaVersion": 2, "config": config.to_json(), "layers": [layer.to_json()]}).encode()
    ingest(store, b"layer", algorithm="sha512")
    for number, data in enumerate((b"{}", raw)):
        ingest(store, data, ref=str(number))
    store.names.put(ONE, Descriptor(media_type=images.OCI_MANIFEST, digest=Digest.of(raw), size=len(raw)), source="tests")
    target = memory_store()
    assert [outcome.error for outcome in import_archive(target, export_to_bytes(store, ONE))] == [None]
    assert content(target) == content(store)


@pytest.mark.parametrize("order", list(itertools.permutations([ONE, TWO, BOTH])))
def test_the_order_of_names_and_of_their_recording_does_not_change_the_archive(order: tuple[str, ...]) -> None:
    built = {ONE: images.image(1), TWO: images.image(2, docker=True), BOTH: both()}
    store, other = memory_store(), memory_store()
    fill(store)
    for name in order:
        put(other, built[name], name)
    assert export_to_bytes(other, *order) == export_to_bytes(store, ONE, TWO, BOTH)
