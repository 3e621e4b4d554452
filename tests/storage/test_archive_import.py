"""Import of image layouts: archives of other tools, names, and damaged or hostile archives."""

import gzip
import io
import json
import logging
import lzma
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import Corrupt, DistError, InvalidInput, NotFound, Unavailable
from prefect_dist.storage import ContentStore, archive, open_store
from tests import images
from tests.peers import skopeo
from tests.peers.processes import PATIENCE_S
from tests.storage.archives import (
    Breaking,
    Entry,
    Stream,
    content,
    descriptor,
    document,
    entries_of,
    export_to_bytes,
    import_archive,
    layout,
    link,
    memory_store,
    names,
    put,
    tar_of,
)
from tests.storage.conformance import ingest, noise

REPOSITORY = Path(__file__).parents[2]
NAME, OTHER = "docker.io/library/one:1", "docker.io/library/two:2"
REF_NAME, CONTAINERD_NAME = "org.opencontainers.image.ref.name", "io.containerd.image.name"
IMAGE = images.image(1, layer_bytes=3000)
ENTRIES = layout(IMAGE, annotations={REF_NAME: NAME})
BLOBS = IMAGE.blobs | {manifest.digest: manifest.raw for manifest in IMAGE.manifests}

# Larger than one read.
LARGE_IMAGE = images.image(3, layer_bytes=1_500_000)
LARGE = tar_of(layout(LARGE_IMAGE, annotations={REF_NAME: NAME}))


def platforms() -> images.BuiltImage:
    return images.index(images.image(seed, platform=platform) for seed, platform in ((1, "linux/amd64"), (2, "linux/arm64")))


def assert_complete(store: ContentStore) -> None:
    assert content(store) == BLOBS
    assert names(store) == {NAME: descriptor(IMAGE)}
    assert list(store.active()) == []


# Archives of other tools


@pytest.mark.parametrize("image", [images.image(1), platforms()], ids=["image", "index"])
def test_an_archive_of_skopeo_is_imported_byte_for_byte(tmp_path: Path, image: images.BuiltImage) -> None:
    source, target = open_store(str(tmp_path / "source")), open_store(str(tmp_path / "target"))
    put(source, image, NAME)
    source.update_index()
    skopeo.copy(f"oci:{tmp_path / 'source'}:{NAME}", f"oci-archive:{tmp_path / 'a.tar'}:{NAME}")
    with (tmp_path / "a.tar").open("rb") as file:
        (outcome,) = archive.import_images(target, file, source="a.tar")
    assert (outcome.name, outcome.descriptor, outcome.error) == (NAME, descriptor(image), None)
    assert content(target) == content(source)
    assert target.names.get(NAME).source == "archive a.tar"
    assert skopeo.inspect(f"oci:{tmp_path / 'target'}:{NAME}", raw=True) == json.loads(image.manifests[-1].raw)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_an_archive_may_be_compressed(store: ContentStore, mode: str) -> None:
    import_archive(store, tar_of(ENTRIES, mode=mode))
    assert_complete(store)


def test_entries_may_come_in_any_order_and_from_a_directory(store: ContentStore) -> None:
    directory = tarfile.TarInfo("./blobs")
    directory.type = tarfile.DIRTYPE
    import_archive(store, tar_of([(directory, b""), *((f"./{name}", data) for name, data in reversed(ENTRIES))]))
    assert_complete(store)


def test_importing_from_a_pipe_equals_importing_from_a_file(store: ContentStore, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(ENTRIES))
    with subprocess.Popen(["cat", tmp_path / "a.tar"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        archive.import_images(store, process.stdout, source="-")
    assert_complete(store)


def test_content_that_is_in_the_store_already_is_kept(store: ContentStore) -> None:
    put(store, IMAGE, OTHER)
    before = {info.digest: info.size for info in store.walk()}
    import_archive(store, tar_of(ENTRIES))
    assert {info.digest: info.size for info in store.walk()} == before
    assert set(names(store)) == {NAME, OTHER}


def test_an_import_updates_the_index(store: ContentStore) -> None:
    import_archive(store, tar_of(ENTRIES))
    listed = json.loads(store._backend.fs.cat_file(store._layout.index))["manifests"]
    assert [entry["annotations"] for entry in listed] == [{REF_NAME: NAME}]


# Names


@pytest.mark.parametrize(
    ("annotations", "name"),
    [
        ({REF_NAME: "latest", CONTAINERD_NAME: NAME}, NAME),  # ctr, docker save
        ({REF_NAME: NAME}, NAME),
        ({REF_NAME: "one:1"}, NAME),
        ({REF_NAME: "ghcr.io/a/b"}, "ghcr.io/a/b:latest"),
        ({REF_NAME: f"one@{IMAGE.root.digest}"}, f"docker.io/library/one@{IMAGE.root.digest}"),
        ({REF_NAME: NAME, CONTAINERD_NAME: "import-2024"}, NAME),
        ({REF_NAME: NAME, CONTAINERD_NAME: "a/b:\x1b[2J"}, NAME),
    ],
)
def test_a_name_in_an_annotation_is_expanded_as_docker_does(annotations: Mapping[str, str], name: str) -> None:
    store = memory_store()
    (outcome,) = import_archive(store, tar_of(layout(IMAGE, annotations=annotations)), name="fallback:1")
    assert (outcome.name, outcome.error) == (name, None)
    assert names(store) == {name: descriptor(IMAGE)}


@pytest.mark.parametrize("text", ["", "latest", "v1.2", "a b:1", "UPPER/case:1", "http://a/b", ":", "a/b:\n"])
def test_a_tag_without_a_repository_or_an_invalid_text_is_not_a_name(text: str) -> None:
    data, store = tar_of(layout(IMAGE, annotations={REF_NAME: text} if text else {})), memory_store()
    (outcome,) = import_archive(store, data)
    assert isinstance(outcome.error, InvalidInput)
    assert str(outcome.error) == (
        f"archive a.tar: index.json.manifests[0]: the archive has no full name for manifest {IMAGE.root.digest}; "
        "specify a name for the image"
    )
    assert names(store) == {}
    (outcome,) = import_archive(store, data, name="one:1")
    assert (outcome.name, outcome.error, names(store)) == (NAME, None, {NAME: descriptor(IMAGE)})


def test_a_bad_name_is_refused_before_anything_is_read() -> None:
    file = Stream(tar_of(ENTRIES))
    with pytest.raises(InvalidInput):
        archive.import_images(memory_store(), file, source="a.tar", name="no name")
    assert file.read() == tar_of(ENTRIES)


def test_a_name_of_two_images_is_imported_for_the_first_and_reported() -> None:
    first, second = (layout(images.image(seed), annotations={REF_NAME: NAME}) for seed in (1, 2))
    manifests = [json.loads(dict(entries)["index.json"])["manifests"][0] for entries in (first, second)]
    index = document({"schemaVersion": 2, "manifests": [*manifests, manifests[0]]})
    store = memory_store()
    outcomes = import_archive(store, tar_of([*first[:-2], *second[:-2], ("index.json", index)]))
    assert [type(outcome.error) for outcome in outcomes] == [type(None), InvalidInput, type(None)]
    assert "only the first is imported" in str(outcomes[1].error)
    assert names(store) == {NAME: descriptor(images.image(1))}


# Incomplete images


@pytest.mark.parametrize("position", range(5))
def test_an_incomplete_image_is_not_recorded_and_others_are(position: int) -> None:
    source, store = memory_store(), memory_store()
    put(source, IMAGE, NAME)
    put(source, images.image(2), OTHER)
    gone = IMAGE.descriptors[position]
    files = entries_of(export_to_bytes(source, NAME, OTHER))
    files.pop(f"blobs/{gone.replace(':', '/')}")
    lacking, whole = import_archive(store, tar_of(list(files.items())))
    assert isinstance(lacking.error, NotFound)
    assert str(lacking.error).startswith(f"{NAME}: 1 descriptor missing in the store (")
    assert gone in str(lacking.error)
    assert (whole.name, whole.error) == (OTHER, None)
    assert names(store) == {OTHER: descriptor(images.image(2))}


def test_content_missing_in_an_archive_may_be_in_the_store() -> None:
    store = memory_store()
    ingest(store, ENTRIES[0][1])
    import_archive(store, tar_of(ENTRIES[1:]))
    assert_complete(store)


def test_an_index_whose_manifests_are_missing_is_not_recorded() -> None:
    image = platforms()
    bare = images.BuiltImage(blobs={}, manifests=image.manifests[-1:])
    (outcome,) = import_archive(memory_store(), tar_of(layout(bare, annotations={REF_NAME: NAME})))
    assert isinstance(outcome.error, NotFound)


@pytest.mark.parametrize(
    ("change", "error"),
    [({"size": 1}, Corrupt), ({"mediaType": images.OCI_INDEX}, InvalidInput), ({"digest": images.digest_of(b"")}, NotFound)],
)
def test_an_image_with_a_wrong_descriptor_in_the_list_is_not_recorded(
    change: Mapping[str, object], error: type[DistError]
) -> None:
    index = json.loads(ENTRIES[-2][1])
    index["manifests"][0] |= change
    store = memory_store()
    (outcome,) = import_archive(store, tar_of([*ENTRIES[:-2], ("index.json", document(index))]))
    assert type(outcome.error) is error
    assert names(store) == {}


# Damage


@pytest.mark.parametrize("position", range(5))
def test_a_blob_that_does_not_match_the_digest_in_its_name_is_never_visible(store: ContentStore, position: int) -> None:
    name, data = ENTRIES[position]
    wrong = bytes([data[0] ^ 1]) + data[1:]
    entries = [*ENTRIES[:position], (name, wrong), *ENTRIES[position + 1 :]]
    with pytest.raises(Corrupt, match=rf"^archive a\.tar: {name} .*: expected sha256:\S+, got {images.digest_of(wrong)}$"):
        import_archive(store, tar_of(entries))
    assert names(store) == {}
    assert list(store.active()) == []
    assert content(store).keys() <= BLOBS.keys()
    import_archive(store, tar_of(ENTRIES))
    assert_complete(store)


def test_a_blob_may_occur_twice() -> None:
    store = memory_store()
    import_archive(store, tar_of([ENTRIES[0], *ENTRIES]))
    assert_complete(store)


@pytest.mark.parametrize("name", ["index.json", "./index.json", "blobs/../index.json"])
def test_two_lists_are_refused(name: str) -> None:
    store = memory_store()
    with pytest.raises(InvalidInput, match=r"index\.json occurs twice; refused, since tools would disagree about it$"):
        import_archive(store, tar_of([*ENTRIES, (name, document({"schemaVersion": 2, "manifests": []}))]))
    assert names(store) == {}


@pytest.mark.parametrize("name", ["index.json", "manifest.json"])
def test_a_huge_list_is_refused_without_reading_it(name: str) -> None:
    with pytest.raises(InvalidInput, match=rf"{name}: expected at most 4194304 bytes, got 4194305$"):
        import_archive(memory_store(), tar_of([(name, bytes(4 * 2**20 + 1))]))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"", "not JSON"),
        (b"[]", "expected a JSON object, got a list"),
        (b'{"manifests": {}}', r"index\.json\.manifests: expected a list, got an object"),
        (b'{"manifests": [{}]}', r"index\.json\.manifests\[0\]\.size: missing"),
        (b'{"manifests": []}', "expected at least one image, got an empty list"),
    ],
)
def test_an_unreadable_list_is_refused_with_the_path_of_the_error(index: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^archive a\.tar: .*{message}"):
        import_archive(memory_store(), tar_of([*ENTRIES[:-2], ("index.json", index)]))


@pytest.mark.parametrize(
    "data", [b"", b"not a tar", bytes(512), noise(5000), gzip.compress(b"text", mtime=0), tar_of([("x", b"y")])]
)
def test_a_file_that_is_no_archive_of_images_is_invalid_input(data: bytes) -> None:
    with pytest.raises(
        InvalidInput, match=r"^archive a\.tar: (expected a tar archive|.*not an archive of images, found neither .*)"
    ):
        import_archive(memory_store(), data)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("percent", [1, 10, 50, 90, 99])
def test_an_incomplete_archive_is_never_imported_as_complete(mode: str, percent: int) -> None:
    data = tar_of(ENTRIES, mode=mode)
    data = data.rstrip(b"\0") if mode == "w" else data
    store = memory_store()
    with pytest.raises((Corrupt, InvalidInput)):
        import_archive(store, data[: len(data) * percent // 100])
    assert names(store) == {}
    assert content(store).keys() <= BLOBS.keys()


def test_an_archive_that_ends_between_entries_is_incomplete() -> None:
    """Otherwise an index whose second manifest is missing at the end would look like an image fetched for one platform."""
    data = tar_of(ENTRIES)
    end = len(data.rstrip(b"\0"))
    store = memory_store()
    with pytest.raises(
        Corrupt, match=r"^archive a\.tar: damaged or incomplete \(empty header\); copy or create the archive again$"
    ):
        import_archive(store, data[: end + -end % 512])
    assert names(store) == {}


def test_a_damaged_header_does_not_count_as_the_end() -> None:
    data = bytearray(tar_of(ENTRIES))
    second = 512 + len(ENTRIES[0][1]) + -len(ENTRIES[0][1]) % 512
    data[second] ^= 1
    with pytest.raises(Corrupt, match="damaged or incomplete"):
        import_archive(memory_store(), bytes(data))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_name_of_gigabytes_is_refused_without_reading_it(kind: bytes) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 2**33
    data = tar_of(ENTRIES).rstrip(b"\0")
    data += bytes(-len(data) % 512) + header.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(Corrupt, match=f"a header has a size of {2**33} bytes"):
        import_archive(memory_store(), data)


def test_memory_does_not_grow_with_the_number_of_blobs() -> None:
    data = tarfile.TarInfo("x").tobuf() * 20_000 + tar_of(ENTRIES)
    store = memory_store()
    tracemalloc.start()
    try:
        archive.import_images(store, Stream(data), source="a.tar")
        assert tracemalloc.get_traced_memory()[1] < 6 * 2**20
    finally:
        tracemalloc.stop()
    assert_complete(store)


def test_too_many_names_are_refused() -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1
    entry = header.tobuf(tarfile.GNU_FORMAT) + b"x".ljust(512, b"\0")
    data = tar_of(ENTRIES).rstrip(b"\0")
    data += bytes(-len(data) % 512) + entry * 2000
    with pytest.raises(Corrupt, match="damaged or incomplete"):
        import_archive(memory_store(), data)


# Decompression bombs, imported by a process with limited memory and CPU time

IMPORT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (80_000_000,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (8,) * 2)
from prefect_dist.storage import open_store
from prefect_dist.storage.archive import import_images
with open(sys.argv[1], "rb") as file:
    import_images(open_store("memory://bomb"), file, source="a.tar")
"""


def explode(path: Path, data: bytes) -> str:
    """Import an archive in a separate process with limits, and return the last line that it prints."""
    path.write_bytes(data)
    argv = [sys.executable, "-c", IMPORT, str(path)]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    last = (done.stderr.splitlines() or [""])[-1]
    assert done.returncode == 0 or last, f"ended by signal {-done.returncode}"
    return last


def sparse_bomb(blocks: int) -> bytes:
    """Return a GNU header of a sparse file in the old format, whose map continues over many blocks."""
    header = tarfile.TarInfo("x.tar")
    header.type = tarfile.GNUTYPE_SPARSE
    raw = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    raw[482], raw[148:156] = 1, b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw) + ((b"%011o\0" % 1) * 42 + b"\1".ljust(8, b"\0")) * blocks


def test_a_chain_of_sparse_maps_is_refused(tmp_path: Path) -> None:
    data = gzip.compress(sparse_bomb(160_000))
    assert len(data) < 300_000
    assert "an entry has more than 100000 pax records and extents" in explode(tmp_path / "a.tar", data)


def test_sparse_maps_of_many_entries_are_refused(tmp_path: Path) -> None:
    entry = sparse_bomb(2300)[: -512 * 2] + ((b"%011o\0" % 1) * 42).ljust(512, b"\0")
    data = gzip.compress(entry * 100)
    assert "more than 1000000 pax records and extents" in explode(tmp_path / "a.tar", data)


def test_global_headers_do_not_accumulate_in_memory(tmp_path: Path) -> None:
    headers = (
        tarfile.TarInfo.create_pax_global_header({f"key{number}.{key}": "x" for key in range(1500)})
        + tarfile.TarInfo("x").tobuf()
        for number in range(600)
    )
    assert explode(tmp_path / "a.tar", gzip.compress(b"".join(headers) + tar_of(ENTRIES))) == ""


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_highly_compressed_content_does_not_fill_memory(tmp_path: Path, mode: str) -> None:
    assert explode(tmp_path / "a.tar", tar_of([("passed over", bytes(170_000_000)), *ENTRIES], mode=mode)) == ""


def test_names_longer_than_any_system_allows_are_refused(tmp_path: Path) -> None:
    long = "a" * 1_900_000
    header = tarfile.TarInfo(f"{long}.json")
    header.type, header.linkname = tarfile.SYMTYPE, long
    links = header.tobuf(tarfile.PAX_FORMAT) * 30
    said = explode(tmp_path / "a.tar", gzip.compress(links + tar_of(ENTRIES)))
    assert "expected names and link targets of at most 4095 bytes, got 1900005" in said


def test_the_total_size_of_remembered_names_is_limited(tmp_path: Path) -> None:
    links = [link(f"{number}{'a' * 3000}.json", "b" * 3000) for number in range(8000)]
    data = gzip.compress(tar_of([*links, *ENTRIES]), 1)
    assert "expected at most 16777216 bytes of names of files other than blobs" in explode(tmp_path / "a.tar", data)


@pytest.mark.parametrize("padding", [0, 4, 3_000_000])
def test_an_xz_archive_may_have_several_streams(padding: int) -> None:
    data, store = tar_of(ENTRIES), memory_store()
    parts = (data[:700], data[700:-9000], data[-9000:])
    import_archive(store, bytes(padding).join(lzma.compress(part) for part in parts))
    assert_complete(store)


def test_an_xz_archive_without_its_last_stream_is_incomplete() -> None:
    data = tar_of(ENTRIES).rstrip(b"\0")
    with pytest.raises(Corrupt, match="damaged or incomplete"):
        import_archive(memory_store(), lzma.compress(data[:700]) + lzma.compress(data[700:-10]))


def test_an_xz_stream_with_a_huge_window_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**30}]
    with pytest.raises(InvalidInput, match="Memory usage limit"):
        import_archive(memory_store(), lzma.compress(tar_of(ENTRIES), filters=filters))


def test_the_holes_of_a_sparse_file_take_no_memory() -> None:
    header = tarfile.TarInfo("x.tar")
    header.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(2**50), "GNU.sparse.name": "x.tar"}
    store = memory_store()
    import_archive(store, tar_of([(header, b""), *ENTRIES]))
    assert_complete(store)


def test_entries_that_belong_to_no_image_are_skipped(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    device = tarfile.TarInfo("blobs/sha256/device")
    device.type = tarfile.CHRTYPE
    strange = [
        "../up",
        "/abs",
        "blobs/sha256/../../../up",
        "blobs/md5/" + "0" * 32,
        "blobs/sha256/x",
        "names/x",
        "a\nb.tar",
        "\x1b[2J.tar",
        "\udcff.tar",
        "é",
    ]
    store = open_store(str(tmp_path / "deep/store"))
    entries: list[Entry] = [
        *((name, b"strange") for name in strange),
        link("blobs/sha256/link", "/etc/passwd"),
        (device, b""),
        *ENTRIES,
    ]
    with caplog.at_level(logging.DEBUG, logger="prefect_dist.storage"):
        import_archive(store, tar_of(entries))
    assert_complete(store)
    assert [file.name for file in tmp_path.iterdir()] == ["deep"]
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["store"]
    assert "archive a.tar: '../up' skipped" in caplog.messages


# Interruptions


@pytest.mark.parametrize("error", [OSError(5, "the disk is gone"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize(("percent", "kept"), [(0, 0), (20, 1), (50, 2), (80, 3), (95, 3)])
def test_an_interrupted_import_can_be_repeated(store: ContentStore, error: BaseException, percent: int, kept: int) -> None:
    stream = Breaking(LARGE, after=len(LARGE) * percent // 100, error=error)
    with pytest.raises(Unavailable if isinstance(error, OSError) else type(error)):
        archive.import_images(store, stream, source="a.tar")
    assert list(store.active()) == []
    assert names(store) == {}
    assert set(content(store)) == set(LARGE_IMAGE.descriptors[:kept])
    (outcome,) = import_archive(store, LARGE)
    assert (outcome.error, set(content(store))) == (None, set(LARGE_IMAGE.descriptors))


def test_two_imports_of_one_archive_at_once_do_not_wait_for_each_other(store: ContentStore) -> None:
    class Both(Stream):
        """A stream that imports the same archive again after some of it has been read."""

        reads = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.reads += 1
            if self.reads == 3:
                assert len(list(store.active())) == 1
                import_archive(store, LARGE)
            return super().read(size)

    (outcome,) = archive.import_images(store, Both(LARGE), source="a.tar")
    assert (outcome.error, set(content(store))) == (None, set(LARGE_IMAGE.descriptors))
    assert list(store.active()) == []


# Any damage


def archive_of(image: images.BuiltImage) -> bytes:
    store = memory_store()
    put(store, image, NAME)
    return export_to_bytes(store, NAME)


WHOLE = archive_of(platforms())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(1, 255)), max_size=4), st.integers(0, len(WHOLE)))
def test_no_damage_of_an_archive_makes_wrong_content_visible(flips: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(WHOLE)
    for position, mask in flips:
        data[position] ^= mask
    store = memory_store()
    try:
        outcomes = archive.import_images(store, io.BytesIO(data[:cut]), source="a.tar")
    except DistError:
        outcomes = ()
    for digest, found in content(store).items():
        assert Digest.of(found) == Digest.parse(digest)
    recorded = {outcome.name for outcome in outcomes if outcome.error is None}
    assert recorded == set(names(store))
    for name in recorded:
        assert name is not None
        export_to_bytes(store, name)
