"""The commands export and import with files, pipes and skopeo."""

import errno
import gzip
import json
import os
import pty
import subprocess
from pathlib import Path

import pytest

from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.storage import ContentStore, open_store
from tests import images
from tests.cli.dist import command, dist
from tests.peers import skopeo
from tests.peers.processes import PATIENCE_S
from tests.storage.archives import content, export_to_bytes, layout, names, put, tar_of

ONE, TWO = "docker.io/library/one:1", "ghcr.io/a/two:2"
FIRST, SECOND = images.image(60), images.image(61)


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    store = open_store(str(tmp_path / "store"))
    put(store, FIRST, ONE)
    put(store, SECOND, TWO)
    return store


@pytest.fixture
def target(tmp_path: Path) -> ContentStore:
    return open_store(str(tmp_path / "target"))


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} - {"store"}


def test_skopeo_reads_an_export(store: ContentStore, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"

    result = dist("--store", store.url, "export", "one:1", TWO, archive)

    assert (result.code, result.err) == (0, "")
    assert [line.split() for line in result.lines] == [["NAME", "DIGEST"], [ONE, FIRST.root.digest], [TWO, SECOND.root.digest]]
    assert skopeo.inspect(f"oci-archive:{archive}:{ONE}", raw=True) == json.loads(FIRST.manifests[-1].raw)
    skopeo.copy(f"oci-archive:{archive}:{TWO}", f"dir:{tmp_path / 'copy'}")
    assert files(tmp_path) == {"a.tar", "copy"}


def test_import_reads_archives_of_skopeo(store: ContentStore, target: ContentStore, tmp_path: Path) -> None:
    store.update_index()
    archive = tmp_path / "a.tar"
    skopeo.copy(f"oci:{store.url}:{ONE}", f"oci-archive:{archive}:{ONE}")

    result = dist("--store", target.url, "--output", "json", "import", archive)

    assert (result.code, result.json) == (0, [{"name": ONE, "digest": FIRST.root.digest, "referrers": 0, "error": None}])
    assert set(content(target)) == set(FIRST.descriptors)
    (name,) = target.names
    assert name.source == f"archive {archive}"


def test_export_includes_referrers_and_says_that_docker_ignores_them(
    store: ContentStore, target: ContentStore, tmp_path: Path
) -> None:
    bill = images.artifact(62, subject=FIRST)
    referrer = Referrer(put(store, bill, "ghcr.io/a/bill:1"))
    store.names.put(ONE, store.names.get(ONE).descriptor, source="tests", referrers=(referrer,))
    archive = tmp_path / "a.tar"

    written = dist("--store", store.url, "--output", "json", "export", ONE, archive)
    read = dist("--store", target.url, "--output", "json", "import", archive)

    line = "dist: the archive also has 1 referrer, which docker load ignores"
    assert (written.code, written.line, written.json[0]["referrers"]) == (0, line, 1)
    assert (read.code, read.err, read.json[0]["referrers"]) == (0, "", 1)
    (name,) = target.names
    assert [str(one.descriptor.digest) for one in name.referrers] == [bill.root.digest]


def test_export_to_import_through_a_pipe(store: ContentStore, target: ContentStore) -> None:
    with subprocess.Popen(command("--store", store.url, "export", ONE, TWO, "-"), stdout=subprocess.PIPE) as export:
        assert export.stdout is not None
        done = subprocess.run(
            command("--store", target.url, "import", "-"),
            stdin=export.stdout,
            capture_output=True,
            check=True,
            timeout=PATIENCE_S,
        )

    assert export.returncode == 0
    assert done.stdout.decode().split() == ["NAME", "DIGEST", ONE, FIRST.root.digest, TWO, SECOND.root.digest]
    assert (content(target), names(target)) == (content(store), names(store))


def test_import_of_a_compressed_archive(store: ContentStore, target: ContentStore) -> None:
    result = dist("--store", target.url, "import", "-", stdin=gzip.compress(export_to_bytes(store, ONE)))

    assert (result.code, list(names(target))) == (0, [ONE])


def test_import_names_an_image_without_a_name(target: ContentStore) -> None:
    archive = tar_of(layout(FIRST, annotations={}))

    nameless = dist("--store", target.url, "import", "-", stdin=archive)
    named = dist("--store", target.url, "import", "--name", "redis:7", "-", stdin=archive)

    assert (nameless.code, nameless.lines) == (1, ["NAME  DIGEST"])
    assert "the archive has no full name for manifest" in nameless.line
    assert (named.code, list(names(target))) == (0, ["docker.io/library/redis:7"])


def test_import_refuses_a_file_that_is_not_an_archive(target: ContentStore, tmp_path: Path) -> None:
    missing = dist("--store", target.url, "import", tmp_path / "none.tar")
    text = dist("--store", target.url, "import", "-", stdin=b"hello")

    assert (missing.code, missing.line) == (1, f"dist: {tmp_path / 'none.tar'}: No such file or directory")
    assert (text.code, text.out) == (1, b"")
    assert text.line.startswith("dist: archive standard input: expected a tar archive")


def test_a_failed_export_keeps_the_existing_file(store: ContentStore, tmp_path: Path) -> None:
    archive, layer = tmp_path / "a.tar", list(FIRST.blobs)[-1]
    archive.write_bytes(b"before")
    blob = Path(store.url, "blobs", *layer.split(":"))
    blob.chmod(0o644)
    blob.write_bytes(b"x" * blob.stat().st_size)

    damaged = dist("--store", store.url, "export", ONE, archive)
    unknown = dist("--store", store.url, "export", "nothing", tmp_path / "b.tar")
    full = dist("--store", store.url, "export", TWO, archive, file_limit_bytes=4096)

    assert (damaged.code, damaged.out, layer in damaged.line) == (1, b"", True)
    assert (unknown.code, "nothing:latest: not in the store" in unknown.line) == (1, True)
    assert (full.code, full.line) == (1, f"dist: {archive}: {os.strerror(errno.EFBIG)}")
    assert archive.read_bytes() == b"before"
    assert files(tmp_path) == {"a.tar"}


def test_export_refuses_an_incomplete_image(store: ContentStore, tmp_path: Path) -> None:
    layer = list(FIRST.blobs)[-1]
    assert dist("--store", store.url, "delete", "--force", layer).code == 0

    result = dist("--store", store.url, "export", ONE, TWO, tmp_path / "a.tar")

    assert (result.code, result.line) == (1, f"dist: {ONE}: 1 descriptor missing in the store (layer {layer})")
    assert files(tmp_path) == set()


def test_export_follows_links_and_writes_to_devices(store: ContentStore, tmp_path: Path) -> None:
    (tmp_path / "link.tar").symlink_to(tmp_path / "real.tar")

    assert dist("--store", store.url, "export", ONE, tmp_path / "link.tar").code == 0
    assert dist("--store", store.url, "export", ONE, "/dev/null").code == 0

    assert (tmp_path / "link.tar").is_symlink()
    assert (tmp_path / "real.tar").read_bytes() == export_to_bytes(store, ONE)
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("arguments", [("export", ONE, "-"), ("import", "-")])
def test_export_and_import_refuse_a_terminal(arguments: tuple[str, ...], store: ContentStore) -> None:
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            command("--store", store.url, *arguments),
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            check=False,
            timeout=PATIENCE_S,
        )
    finally:
        os.close(ours)
        os.close(theirs)

    assert done.returncode == 2
    assert b"is a terminal; name a file, or redirect" in done.stderr
