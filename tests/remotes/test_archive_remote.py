"""Archives as sources: archives of other tools and of `dist export`, selection by tag, and damaged or hostile archives."""

import gzip
import json
import lzma
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import Conflict, Corrupt, InvalidInput, NotFound, Unavailable, Unsupported
from prefect_dist.remotes import archive_file
from prefect_dist.storage import StoreFull, open_store
from tests import images
from tests.peers import skopeo
from tests.peers.processes import PATIENCE_S
from tests.remotes.archive_remotes import content_of, open_remotes, read_image, refuse
from tests.storage.archives import (
    Entry,
    content,
    document,
    export_to_bytes,
    import_archive,
    layout,
    link,
    memory_store,
    put,
    tar_of,
)
from tests.storage.test_archive_docker import CONFIG, CONFIG_NAME, ITEM, LAYERS, old_docker_archive

REPOSITORY = Path(__file__).parents[2]
REF_NAME = "org.opencontainers.image.ref.name"
ONE, TWO = images.image(8100, layers=2), images.image(8101, layers=1)
ONE_NAME, TWO_NAME = "docker.io/library/one:1", "docker.io/library/two:1"
ENTRIES = layout(ONE, annotations={REF_NAME: "v1"})
LARGE = images.image(8102, layers=1, layer_bytes=9_000_000)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of(ENTRIES))
    return path


def exported() -> bytes:
    store = memory_store()
    put(store, ONE, ONE_NAME)
    put(store, TWO, TWO_NAME)
    return export_to_bytes(store, ONE_NAME, TWO_NAME)


def tags_of(text: str) -> list[str]:
    with open_remotes() as remotes:
        return list(remotes.open_source(Reference.parse(text)).tags())


def test_a_slow_archive_delays_no_other_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressed archive is first decompressed to a temporary file, which waits here for the other archive."""
    slow, quick = tmp_path / "slow.tar.gz", tmp_path / "quick.tar"
    slow.write_bytes(gzip.compress(tar_of(ENTRIES)))
    quick.write_bytes(tar_of(ENTRIES))
    begun, is_quick_open, make = threading.Event(), threading.Event(), tempfile.TemporaryFile

    def wait() -> object:
        begun.set()
        assert is_quick_open.wait(30)
        return make()

    monkeypatch.setattr(tempfile, "TemporaryFile", wait)
    with open_remotes() as remotes, ThreadPoolExecutor(2) as threads:

        def list_tags(path: Path) -> list[str]:
            return list(remotes.open_source(Reference.parse(f"oci-archive:{path}")).tags())

        first = threads.submit(list_tags, slow)
        assert begun.wait(30)
        try:
            assert threads.submit(list_tags, quick).result(20) == ["v1"]
        finally:
            is_quick_open.set()
        assert first.result(30) == ["v1"]


# Selection


@pytest.mark.parametrize("suffix", ["", ":v1", f"@{ONE.root.digest}", f":v1@{ONE.root.digest}"])
def test_a_single_image_is_found_by_tag_by_digest_and_without_either(archive: Path, suffix: str) -> None:
    assert read_image(f"oci-archive:{archive}{suffix}") == content_of(ONE)


def test_a_missing_tag_or_digest_or_file_is_not_found(archive: Path, tmp_path: Path) -> None:
    assert isinstance(refuse(f"oci-archive:{archive}:v2"), NotFound)
    assert isinstance(refuse(f"oci-archive:{archive}@sha256:{'0' * 64}"), NotFound)
    error = refuse(f"oci-archive:{tmp_path}/absent.tar:v1")
    assert isinstance(error, NotFound)
    assert "no archive of images found; check the path, which ends at the first colon" in str(error)


@pytest.mark.parametrize("scheme", ["oci-archive", "docker-archive"])
def test_full_names_are_selected_by_repository_and_tag(tmp_path: Path, scheme: str) -> None:
    (tmp_path / "a.tar").write_bytes(exported())
    place = f"{scheme}:{tmp_path}/a.tar"
    assert "expected one image" in str(refuse(f"{place}:1"))
    assert f"several images: {ONE_NAME}, {TWO_NAME}" in str(refuse(place))
    assert read_image(f"{place}:one:1") == content_of(ONE)
    assert read_image(f"{place}:docker.io/library/two:1") == content_of(TWO)
    assert tags_of(f"{place}:two:") == ["1"]
    assert isinstance(refuse(f"{place}:three:1"), NotFound)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("s3://bucket/a.tar:v1", "an archive is a file on the local disk, not a URL"),
        ("a.tar:Bad Name:v1", "expected a repository after the first colon, which ends the path of the file"),
    ],
)
def test_a_place_that_names_no_file_is_refused(place: str, message: str) -> None:
    error = refuse(f"oci-archive:{place}")
    assert isinstance(error, InvalidInput)
    assert message in str(error)


def test_a_path_may_have_spaces_and_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my images").mkdir()
    (tmp_path / "my images" / "a.tar").write_bytes(tar_of(ENTRIES))
    monkeypatch.chdir(tmp_path)
    assert read_image("oci-archive:my images/a.tar:v1") == content_of(ONE)


# Archives of other tools


def test_archives_of_skopeo_are_read_byte_for_byte(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    put(store, ONE, ONE_NAME)
    store.update_index()
    source = f"oci:{tmp_path}/store:{ONE_NAME}"
    skopeo.copy(source, f"oci-archive:{tmp_path}/o.tar:v1")
    skopeo.copy(source, f"docker-archive:{tmp_path}/d.tar:one:1")
    assert read_image(f"oci-archive:{tmp_path}/o.tar:v1") == content_of(ONE)
    found = read_image(f"docker-archive:{tmp_path}/d.tar:1")
    assert {digest for digest in ONE.blobs if gzip.compress(b"")[:2] != ONE.blobs[digest][:2]} < found.keys()  # the config
    assert read_image(f"docker-archive:{tmp_path}/d.tar:one:1") == found


def test_docker_s_list_gives_the_image_that_import_gives(tmp_path: Path) -> None:
    (tmp_path / "d.tar").write_bytes(old_docker_archive())
    store = memory_store()
    (imported,) = import_archive(store, old_docker_archive())
    assert read_image(f"docker-archive:{tmp_path}/d.tar") == content(store)
    with open_remotes() as remotes:
        resolved = remotes.resolve(Reference.parse(f"docker-archive:{tmp_path}/d.tar:1"))
    assert resolved.descriptor == imported.descriptor
    assert tags_of(f"docker-archive:{tmp_path}/d.tar") == ["1"]


def test_an_archive_with_both_lists_is_read_by_either_scheme(tmp_path: Path) -> None:
    entries: list[Entry] = [(f"blobs/{digest.replace(':', '/')}", raw) for digest, raw in content_of(ONE).items()]
    digest, media_type, size = ONE.root
    names = {REF_NAME: "1", "io.containerd.image.name": ONE_NAME}
    index = {"schemaVersion": 2, "manifests": [{"mediaType": media_type, "digest": digest, "size": size, "annotations": names}]}
    config, *layers = [f"blobs/{blob.replace(':', '/')}" for blob in ONE.blobs]
    listed = [{"Config": config, "RepoTags": ["one:1"], "Layers": layers}]
    entries += [
        ("index.json", document(index)),
        ("manifest.json", document(listed)),
        ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
    ]
    (tmp_path / "d.tar").write_bytes(tar_of(entries))
    for scheme in ("oci-archive", "docker-archive"):
        assert read_image(f"{scheme}:{tmp_path}/d.tar:1") == content_of(ONE)
        assert read_image(f"{scheme}:{tmp_path}/d.tar:one:1") == content_of(ONE)


def test_an_archive_with_only_docker_s_list_names_the_other_scheme(tmp_path: Path) -> None:
    (tmp_path / "d.tar").write_bytes(old_docker_archive())
    error = refuse(f"oci-archive:{tmp_path}/d.tar:1")
    assert isinstance(error, Unsupported)
    assert str(error).endswith("the archive has only Docker's list of images; name it docker-archive:FILE")


@pytest.mark.parametrize("target", ["../cc.tar", ".././bb/../cc.tar"])
def test_a_layer_may_be_a_link_to_another_entry(tmp_path: Path, target: str) -> None:
    others: list[Entry] = [("aa/layer.tar", LAYERS[0]), (CONFIG_NAME, CONFIG), ("manifest.json", document([ITEM]))]
    (tmp_path / "d.tar").write_bytes(tar_of([link("bb/layer.tar", target), ("cc.tar", LAYERS[1]), *others]))
    assert set(LAYERS) < set(read_image(f"docker-archive:{tmp_path}/d.tar").values())


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_compressed_archive_is_read_from_an_unnamed_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: "type[gzip.GzipFile]"
) -> None:
    (tmp_path / "a.tar").write_bytes(pack(tar_of(ENTRIES)))  # type: ignore[arg-type]
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    with open_remotes() as remotes:
        assert read_image(f"oci-archive:{tmp_path}/a.tar:v1", remotes=remotes) == content_of(ONE)
        assert list((tmp_path / "temporary").iterdir()) == []


def test_a_compressed_archive_stops_before_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tar").write_bytes(gzip.compress(tar_of(ENTRIES)))
    monkeypatch.setattr(archive_file, "_FREE_BYTES", 2**62)
    error = refuse(f"oci-archive:{tmp_path}/a.tar:v1")
    assert isinstance(error, StoreFull)
    assert "$TMPDIR" in str(error)


# Random access


def test_a_fetch_continues_at_an_offset(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(layout(LARGE, annotations={REF_NAME: "v1"})))
    layer = list(LARGE.blobs.values())[-1]
    with open_remotes() as remotes:
        resolved = remotes.resolve(Reference.parse(f"oci-archive:{tmp_path}/a.tar@{images.digest_of(layer)}"))
        pieces = list(resolved.fetcher.fetch(resolved.descriptor, offset=1_000_000))
    assert b"".join(pieces) == layer[1_000_000:]
    assert max(map(len, pieces)) <= 4 * 1024 * 1024


def test_a_run_reads_the_headers_once_and_only_the_wanted_content(tmp_path: Path) -> None:
    """The process reads a tenth of an archive at most: the other image is skipped."""
    path = tmp_path / "a.tar"
    big = images.image(8103, layers=1, layer_bytes=30_000_000)
    entries = [*layout(ONE, annotations={REF_NAME: "v1"})[:-2], *layout(big, annotations={REF_NAME: "big"})[:-2]]
    listed = [
        {"mediaType": one.root.media_type, "digest": one.root.digest, "size": one.root.size, "annotations": {REF_NAME: tag}}
        for one, tag in ((ONE, "v1"), (big, "big"))
    ]
    path.write_bytes(tar_of([*entries, ("index.json", document({"schemaVersion": 2, "manifests": listed}))]))
    with open_remotes() as remotes:
        before = _read_bytes()
        for _ in range(50):
            assert read_image(f"oci-archive:{path}:v1", remotes=remotes) == content_of(ONE)
        assert _read_bytes() - before < 3_000_000


def _read_bytes() -> int:
    """Return the number of bytes that this process has read with system calls."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def test_a_file_that_is_replaced_during_a_run_is_read_as_before(archive: Path) -> None:
    with open_remotes() as remotes:
        resolved = remotes.resolve(Reference.parse(f"oci-archive:{archive}:v1"))
        other = archive.with_name("b.tar")
        other.write_bytes(tar_of(layout(TWO, annotations={REF_NAME: "v1"})))
        other.replace(archive)
        assert b"".join(resolved.fetcher.fetch(resolved.descriptor)) == ONE.manifests[-1].raw


def test_a_file_that_is_changed_in_place_is_refused(archive: Path) -> None:
    with open_remotes() as remotes:
        resolved = remotes.resolve(Reference.parse(f"oci-archive:{archive}:v1"))
        archive.write_bytes(tar_of(layout(TWO, annotations={REF_NAME: "v1"})))
        os.utime(archive, (1, 1))
        with pytest.raises(Conflict, match="another program changed the file while it was read; run again when"):
            list(resolved.fetcher.fetch(resolved.descriptor))


def test_an_abort_ends_the_reading(archive: Path) -> None:
    with open_remotes() as remotes:
        resolved = remotes.resolve(Reference.parse(f"oci-archive:{archive}:v1"))
        remotes.abort()
        with pytest.raises(Unavailable, match="aborted"):
            list(resolved.fetcher.fetch(resolved.descriptor))


# Damaged and hostile archives


def hostile(change: list[Entry], *, without: str = "nothing") -> bytes:
    return tar_of([*(entry for entry in ENTRIES if without not in str(entry[0])), *change])


LAYER_ENTRY = next(name for name, data in ENTRIES if len(data) > 1000 and isinstance(name, str) and name.startswith("blobs/"))
SPARSE = tarfile.TarInfo(LAYER_ENTRY)
SPARSE.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": "4", "GNU.sparse.name": LAYER_ENTRY}


@pytest.mark.parametrize(
    "replacement",
    [
        link(LAYER_ENTRY, "/etc/passwd"),
        link(LAYER_ENTRY, "../../../../../../etc/passwd"),
        link(LAYER_ENTRY, "/etc/passwd", kind=tarfile.LNKTYPE),
        link(LAYER_ENTRY, LAYER_ENTRY.rpartition("/")[2]),
        (f"/{LAYER_ENTRY}", b"absolute"),
        (f"../{LAYER_ENTRY}", b"above"),
        (SPARSE, b""),
    ],
    ids=["absolute link", "link above", "hard link", "link to itself", "absolute name", "name above", "sparse"],
)
def test_no_entry_leads_out_of_the_archive(tmp_path: Path, replacement: Entry) -> None:
    (tmp_path / "a.tar").write_bytes(hostile([replacement], without=LAYER_ENTRY))
    error = refuse(f"oci-archive:{tmp_path}/a.tar:v1")
    assert isinstance(error, NotFound)
    assert "is missing in the archive" in str(error)


@pytest.mark.parametrize("name", ["index.json", "oci-layout", LAYER_ENTRY])
def test_two_entries_with_one_name_and_different_content_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.tar").write_bytes(hostile([(name, b"{}")]))
    error = refuse(f"oci-archive:{tmp_path}/a.tar:v1")
    assert isinstance(error, InvalidInput)
    assert f"{name} occurs twice" in str(error)


def test_a_blob_may_occur_twice(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of([*ENTRIES, *ENTRIES[:-2]]))
    assert read_image(f"oci-archive:{tmp_path}/a.tar:v1") == content_of(ONE)


@pytest.mark.parametrize("percent", [0, 10, 50, 90, 99])
def test_a_truncated_archive_is_refused(tmp_path: Path, percent: int) -> None:
    data = tar_of(ENTRIES).rstrip(b"\0")
    (tmp_path / "a.tar").write_bytes(data[: len(data) * percent // 100])
    assert isinstance(refuse(f"oci-archive:{tmp_path}/a.tar:v1"), Corrupt | InvalidInput)


def test_an_entry_beyond_the_largest_file_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x.tar")
    header.size = 2**62
    (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + tar_of(ENTRIES))
    error = refuse(f"oci-archive:{tmp_path}/a.tar:v1")
    assert isinstance(error, Corrupt)
    assert "damaged or incomplete" in str(error)


def test_a_huge_document_is_refused_without_reading_it(tmp_path: Path) -> None:
    header = tarfile.TarInfo("index.json")
    header.size = 2**33
    path = tmp_path / "a.tar"
    with path.open("wb") as file:  # a file with a hole
        file.write(header.tobuf())
        file.seek(2**33, os.SEEK_CUR)
        file.write(tar_of(ENTRIES[:-2]))
    error = refuse(f"oci-archive:{path}:v1")
    assert isinstance(error, InvalidInput)
    assert "index.json: expected at most" in str(error)


def test_more_entries_than_the_limit_are_refused(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_file, "_MAX_ENTRIES", 3)
    assert "expected at most 3 files" in str(refuse(f"oci-archive:{archive}:v1"))


def test_more_bytes_of_names_than_the_limit_are_refused(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_file, "_MAX_NAME_BYTES", 100)
    assert "100 bytes of names, found more" in str(refuse(f"oci-archive:{archive}:v1"))


@pytest.mark.parametrize("kind", ["directory", "pipe"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.tar"
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    assert isinstance(refuse(f"oci-archive:{path}:v1"), InvalidInput)


def test_wrong_bytes_in_docker_s_list_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d.tar").write_bytes(old_docker_archive(files={"bb/layer.tar": LAYERS[0]}))
    error = refuse(f"docker-archive:{tmp_path}/d.tar")
    assert isinstance(error, Corrupt)
    assert "expected diff ID" in str(error)


BOMB = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (120_000_000,) * 2)
from tests.remotes.archive_remotes import read_image
print(len(read_image(sys.argv[1])))
"""


def test_memory_does_not_grow_with_the_content_of_an_archive(tmp_path: Path) -> None:
    big = images.image(8104, layers=1, layer_bytes=1000)
    padding = ("passed over", bytes(250_000_000))
    path = tmp_path / "a.tar"
    path.write_bytes(gzip.compress(tar_of([padding, *layout(big, annotations={REF_NAME: "v1"})]), 1))
    argv = [sys.executable, "-c", BOMB, f"oci-archive:{path}:v1"]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert (done.stdout.strip(), done.stderr) == ("3", "")


def test_the_descriptor_of_an_index_entry_is_not_trusted(tmp_path: Path) -> None:
    index = json.loads({str(name): data for name, data in ENTRIES}["index.json"])
    index["manifests"][0]["size"] += 1
    entries = [(name, document(index) if name == "index.json" else data) for name, data in ENTRIES]
    (tmp_path / "a.tar").write_bytes(tar_of(entries))
    assert isinstance(refuse(f"oci-archive:{tmp_path}/a.tar:v1"), Corrupt)
