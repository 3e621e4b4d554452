"""Archives as targets: their format, tags and referrers, existing archives, crashes, full disks and concurrent writers."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import Corrupt, Denied, DistError, InvalidInput, NotFound, Unavailable, Unsupported
from prefect_dist.ocispec.referrers import cosign_tags, fallback_tag
from prefect_dist.remotes import Remotes, Target
from prefect_dist.storage import open_store
from tests import images
from tests.peers import skopeo
from tests.peers.processes import PATIENCE_S, require
from tests.remotes.archive_remotes import content_of, open_remotes, read_image
from tests.storage.archives import (
    descriptor,
    entries_of,
    export_to_bytes,
    import_archive,
    layout,
    memory_store,
    put,
    tar_of,
)
from tests.storage.test_archive_docker import old_docker_archive

REPOSITORY = Path(__file__).parents[2]
REF_NAME = "org.opencontainers.image.ref.name"
ONE, TWO, ARM = images.image(8200, layers=2), images.image(8201, layers=1), images.image(8202, layers=1, platform="linux/arm64")
INDEX = images.index([ONE, ARM])
BILL = images.artifact(8203, subject=ONE)
SIGNED_BILL = images.artifact(8204, subject=BILL)
SIGNATURE = images.artifact(8205)  # without a subject, as in cosign's signatures
SIGNATURE_TAG = cosign_tags(Digest.parse(ONE.root.digest))[0]
SCHEMES = ["oci-archive", "docker-archive"]


def ignore(_offset: int, _gained: int) -> None:
    """Ignore the progress of an upload."""


def push_content(target: Target, image: images.BuiltImage) -> None:
    """Push the blobs of an image, and its manifests without a tag."""
    for digest, data in image.blobs.items():
        blob = Descriptor(media_type=images.OCI_LAYER, digest=Digest.parse(digest), size=len(data))
        target.upload(blob, lambda offset, data=data: iter((data[offset:],)), observer=ignore)  # type: ignore[misc]
    for manifest in image.manifests:
        one = Descriptor(media_type=manifest.media_type, digest=Digest.parse(manifest.digest), size=len(manifest.raw))
        target.put(manifest.raw, one)


def set_tag(target: Target, image: images.BuiltImage, tag: str) -> None:
    """Set a tag of an image whose content was pushed."""
    target.put(image.manifests[-1].raw, descriptor(image), tag=tag)


def push(remotes: Remotes, text: str, image: images.BuiltImage) -> Target:
    """Push an image to the reference `text`."""
    reference = Reference.parse(text)
    target = remotes.open_target(reference)
    push_content(target, image)
    set_tag(target, image, str(reference.tag))
    return target


def write(text: str, image: images.BuiltImage) -> None:
    """Push an image in a run of its own."""
    with open_remotes() as remotes:
        push(remotes, text, image)


def tags_of(text: str) -> list[str]:
    with open_remotes() as remotes:
        return sorted(remotes.open_source(Reference.parse(text)).tags())


def digest_of_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Format


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_pushed_image_is_read_back_byte_for_byte(tmp_path: Path, scheme: str) -> None:
    write(f"{scheme}:{tmp_path}/a.tar:v1", ONE)
    for reader in SCHEMES:
        assert read_image(f"{reader}:{tmp_path}/a.tar:v1") == content_of(ONE)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.tar"]


def test_an_archive_with_a_full_name_equals_the_export_of_the_name(tmp_path: Path) -> None:
    write(f"oci-archive:{tmp_path}/a.tar:one:1", ONE)
    store = memory_store()
    put(store, ONE, "docker.io/library/one:1")
    assert (tmp_path / "a.tar").read_bytes() == export_to_bytes(store, "docker.io/library/one:1")
    (imported,) = import_archive(memory_store(), (tmp_path / "a.tar").read_bytes())
    assert (imported.name, imported.descriptor, imported.error) == ("docker.io/library/one:1", descriptor(ONE), None)


def test_the_order_of_tags_does_not_change_the_archive(tmp_path: Path) -> None:
    pushed = [("v1", ONE), ("v2", TWO), ("latest", TWO), ("all", INDEX)]
    for name, order in (("a", pushed), ("b", pushed[::-1])):
        with open_remotes() as remotes:
            for tag, image in order:
                push(remotes, f"oci-archive:{tmp_path}/{name}.tar:{tag}", image)
    assert digest_of_file(tmp_path / "a.tar") == digest_of_file(tmp_path / "b.tar")
    assert tags_of(f"oci-archive:{tmp_path}/a.tar") == ["all", "latest", "v1", "v2"]


def test_skopeo_reads_an_oci_archive(tmp_path: Path) -> None:
    write(f"oci-archive:{tmp_path}/a.tar:v1", INDEX)
    skopeo.copy(f"oci-archive:{tmp_path}/a.tar:v1", f"oci:{tmp_path}/layout:v1")
    assert skopeo.raw(f"oci:{tmp_path}/layout:v1") == INDEX.manifests[-1].raw
    blobs = {f"sha256:{file.name}": file.read_bytes() for file in (tmp_path / "layout/blobs/sha256").iterdir()}
    assert blobs == content_of(INDEX)


@pytest.mark.parametrize("name", ["", ":registry.example:5000/team/one"])
def test_skopeo_reads_a_docker_archive(tmp_path: Path, name: str) -> None:
    write(f"docker-archive:{tmp_path}/a.tar{name}:v1", ONE)
    reference = f"{tmp_path}/a.tar{f'{name}:v1' if name else ''}"
    skopeo.copy(f"docker-archive:{reference}", f"oci:{tmp_path}/layout:v1")
    skopeo.copy(f"docker-archive:{reference}", f"dir:{tmp_path}/copy")
    config, *layers = ONE.blobs.values()
    assert {config, *map(gzip.decompress, layers)} < {file.read_bytes() for file in (tmp_path / "copy").iterdir()}
    assert skopeo.inspect(f"docker-archive:{reference}")["Architecture"] == "amd64"
    (listed,) = json.loads(entries_of((tmp_path / "a.tar").read_bytes())["manifest.json"])
    assert listed["RepoTags"] == ([f"{name[1:]}:v1"] if name else [])


def test_umoci_unpacks_the_layout_in_an_archive(tmp_path: Path) -> None:
    write(f"docker-archive:{tmp_path}/a.tar:v1", ONE)
    (tmp_path / "layout").mkdir()
    subprocess.run(["tar", "xf", tmp_path / "a.tar", "-C", tmp_path / "layout"], check=True)
    image = f"{tmp_path}/layout:v1"
    subprocess.run([require("umoci", "umoci"), "raw", "unpack", "--rootless", "--image", image, tmp_path / "out"], check=True)
    assert sorted(file.stat().st_size for file in (tmp_path / "out").rglob("*") if file.is_file()) == [1000, 1000]


def test_a_docker_archive_refuses_an_image_of_several_platforms(tmp_path: Path) -> None:
    with open_remotes() as remotes, pytest.raises(Unsupported, match="docker load reads images of one platform") as caught:
        push(remotes, f"docker-archive:{tmp_path}/a.tar:v1", INDEX)
    assert "this content has 2 images; select one platform, or write an oci-archive:" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_attestations_of_one_platform_are_no_second_platform() -> None:
    attested = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": ONE.root.digest}
    listed = {"platform": {"os": "unknown", "architecture": "unknown"}, "annotations": attested}
    attestation = Descriptor.from_json({**descriptor(ARM).to_json(), **listed}, at="test")
    with open_remotes() as remotes:
        for scheme in SCHEMES:
            target = remotes.open_target(Reference.parse(f"{scheme}:a.tar:v1"))
            target.check_image([descriptor(INDEX), descriptor(ONE), attestation])
        with pytest.raises(Unsupported, match="this content has 2 images"):
            target.check_image([descriptor(INDEX), descriptor(ONE), descriptor(ARM), attestation])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_index_of_which_one_platform_was_pushed_is_written_without_the_other(tmp_path: Path, scheme: str) -> None:
    with open_remotes() as remotes:
        target = remotes.open_target(Reference.parse(f"{scheme}:{tmp_path}/a.tar:v1"))
        push_content(target, ARM)
        set_tag(target, INDEX, "v1")
    files = entries_of((tmp_path / "a.tar").read_bytes())
    assert len(json.loads(files["manifest.json"])) == 1
    blobs = {f"sha256:{name.rpartition('/')[2]}" for name in files if name.startswith("blobs/")}
    assert blobs == {*content_of(ARM), INDEX.root.digest}


def test_a_manifest_whose_layers_were_not_pushed_is_refused(tmp_path: Path) -> None:
    with open_remotes() as remotes:
        target = remotes.open_target(Reference.parse(f"oci-archive:{tmp_path}/a.tar:v1"))
        with pytest.raises(NotFound, match="was not pushed before its manifest"):
            set_tag(target, ONE, "v1")
    assert list(tmp_path.iterdir()) == []


def test_wrong_bytes_never_reach_an_archive(tmp_path: Path) -> None:
    with open_remotes() as remotes:
        target = remotes.open_target(Reference.parse(f"oci-archive:{tmp_path}/a.tar:v1"))
        blob = Descriptor(media_type=images.OCI_LAYER, digest=Digest.of(b"right"), size=5)
        with pytest.raises(Corrupt):
            target.upload(blob, lambda _offset: iter((b"wrong",)), observer=ignore)
        with pytest.raises(Corrupt, match=r"expected (5 bytes|sha256:.*), the caller has"):
            target.put(b"wrong", blob, tag="v1")
        with pytest.raises(InvalidInput, match="bad tag"):
            target.put(b"right", blob, tag="../v1")
    assert list(tmp_path.iterdir()) == []


# Existing archives


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_unchanged_tag_does_not_write_the_file(tmp_path: Path, scheme: str) -> None:
    text, path = f"{scheme}:{tmp_path}/a.tar:v1", tmp_path / "a.tar"
    write(text, ONE)
    before = path.stat()
    with open_remotes() as remotes:
        reference = Reference.parse(text)
        assert remotes.open_origin(reference).resolve(reference) == descriptor(ONE)
        target = push(remotes, text, ONE)
        assert target.has(descriptor(ONE), tag="v1")
        assert not target.has(descriptor(ONE), tag="v2")
        assert not target.has(descriptor(TWO))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_other_tags_of_an_archive_stay_and_a_replaced_tag_leaves_no_content(tmp_path: Path) -> None:
    place = f"oci-archive:{tmp_path}/a.tar"
    for tag, image in (("v1", ONE), ("v2", ONE), ("old", TWO)):
        write(f"{place}:{tag}", image)  # each run has an empty store, so the content comes from the archive
    write(f"{place}:old", ARM)
    assert tags_of(place) == ["old", "v1", "v2"]
    assert read_image(f"{place}:v1") == content_of(ONE)
    assert read_image(f"{place}:old") == content_of(ARM)
    names = {name for name in entries_of((tmp_path / "a.tar").read_bytes()) if name.startswith("blobs/")}
    assert names == {f"blobs/{digest.replace(':', '/')}" for digest in (*content_of(ONE), *content_of(ARM))}


@pytest.mark.parametrize("foreign", ["skopeo", "docker", "untagged", "compressed"])
def test_an_archive_of_another_tool_keeps_its_images(tmp_path: Path, foreign: str) -> None:
    path = tmp_path / "a.tar"
    if foreign == "skopeo":
        write(f"oci-archive:{tmp_path}/made.tar:x", TWO)
        skopeo.copy(f"oci-archive:{tmp_path}/made.tar:x", f"oci-archive:{path}:x")
    elif foreign == "docker":
        path.write_bytes(old_docker_archive())
    else:
        path.write_bytes(tar_of(layout(TWO, annotations={}), mode="w:gz" if foreign == "compressed" else "w"))
    kept = read_image(f"docker-archive:{path}")
    write(f"oci-archive:{path}:v1", ONE)
    assert read_image(f"oci-archive:{path}:v1") == content_of(ONE)
    root = next(digest for digest, raw in kept.items() if b'"layers"' in raw)
    assert read_image(f"oci-archive:{path}@{root}") == kept


@pytest.mark.parametrize("data", [b"", b"notes of a person", b"x" * 20_000])
def test_a_file_that_is_no_archive_is_refused_and_stays(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "notes"
    path.write_bytes(data)
    with open_remotes() as remotes:
        reference = Reference.parse(f"oci-archive:{path}:v1")
        with pytest.raises(InvalidInput, match="expected a tar archive"):
            remotes.open_origin(reference).resolve(reference)
        with pytest.raises(InvalidInput, match="expected a tar archive"):
            push(remotes, str(reference), ONE)
    assert path.read_bytes() == data


def test_damaged_content_of_an_existing_archive_is_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write(f"oci-archive:{path}:old", TWO)
    layer = list(TWO.blobs.values())[-1]
    damaged = path.read_bytes().replace(layer, bytes(len(layer)))
    path.write_bytes(damaged)
    with open_remotes() as remotes, pytest.raises(Corrupt, match="remove the archive"):
        push(remotes, f"oci-archive:{path}:v1", ONE)
    assert path.read_bytes() == damaged
    assert list(tmp_path.iterdir()) == [path]


def test_a_tag_whose_image_lacks_content_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    entries = layout(ONE, annotations={REF_NAME: "v1"})
    path.write_bytes(tar_of([one for one in entries if one[0] != f"blobs/{list(ONE.blobs)[-1].replace(':', '/')}"]))
    write(f"oci-archive:{path}:v1", ONE)
    assert read_image(f"oci-archive:{path}:v1") == content_of(ONE)


def test_a_missing_directory_is_refused_before_content_is_pushed(tmp_path: Path) -> None:
    with open_remotes() as remotes, pytest.raises(InvalidInput, match=r"the directory \S+/absent does not exist; create"):
        remotes.open_target(Reference.parse(f"oci-archive:{tmp_path}/absent/a.tar:v1"))
    with open_remotes() as remotes, pytest.raises(InvalidInput, match="expected a regular file"):
        remotes.open_target(Reference.parse(f"oci-archive:{tmp_path}:v1"))


def test_a_symbolic_link_and_the_permissions_of_a_file_are_kept(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "a.tar").symlink_to("disk/b.tar")
    write(f"oci-archive:{tmp_path}/a.tar:v1", ONE)
    (tmp_path / "disk" / "b.tar").chmod(0o640)
    write(f"oci-archive:{tmp_path}/a.tar:v2", TWO)
    assert (tmp_path / "a.tar").is_symlink()
    assert (tmp_path / "disk" / "b.tar").stat().st_mode & 0o777 == 0o640
    assert tags_of(f"oci-archive:{tmp_path}/a.tar") == ["v1", "v2"]


def test_a_new_archive_is_not_written_through_a_link_or_into_the_file_of_another_user(tmp_path: Path) -> None:
    """The directory may be shared with other users, such as /tmp."""
    partial, victim = tmp_path / ".a.tar.partial", tmp_path / "victim"
    victim.write_text("content of a person")
    partial.symlink_to(victim)
    with pytest.raises(DistError, match="writing: Too many levels of symbolic links"):
        write(f"oci-archive:{tmp_path}/a.tar:v1", ONE)
    partial.unlink()
    if os.geteuid() == 0:
        partial.touch()
        os.chown(partial, 65534, 65534)
        with pytest.raises(Denied, match="belongs to another user; remove the file"):
            write(f"oci-archive:{tmp_path}/a.tar:v1", ONE)
        partial.unlink()
    assert victim.read_text() == "content of a person"
    assert list(tmp_path.iterdir()) == [victim]


def test_tags_are_deleted_with_the_content_that_no_other_tag_needs(tmp_path: Path) -> None:
    place = f"oci-archive:{tmp_path}/a.tar"
    with open_remotes() as remotes:
        for tag, image in (("v1", ONE), ("v2", TWO), ("latest", TWO)):
            target = push(remotes, f"{place}:{tag}", image)
        assert (target.delete_tag("v1"), target.delete_tag("v1")) == (True, True)
    assert tags_of(place) == ["latest", "v2"]
    names = entries_of((tmp_path / "a.tar").read_bytes())
    assert {name for name in names if name.startswith("blobs/")} == {
        f"blobs/{one.replace(':', '/')}" for one in content_of(TWO)
    }
    with open_remotes() as remotes:
        target = remotes.open_target(Reference.parse(f"{place}:v2"))
        target.delete(descriptor(TWO).digest)
        target.delete(descriptor(TWO).digest)
    assert tags_of(place) == []


# Referrers


def push_with_referrers(remotes: Remotes, text: str) -> None:
    """Push an image and its referrers as `transfer.publishing` does: the image, its referrers, and last the tag."""
    reference = Reference.parse(text)
    target = remotes.open_target(reference)
    for image in (ONE, BILL, SIGNED_BILL):
        push_content(target, image)
    push_content(target, SIGNATURE)
    set_tag(target, SIGNATURE, SIGNATURE_TAG)
    set_tag(target, ONE, str(reference.tag))


@pytest.mark.parametrize("name", ["", ":team/app"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_referrers_and_digest_tags_are_written_with_the_image(tmp_path: Path, scheme: str, name: str) -> None:
    text = f"{scheme}:{tmp_path}/a.tar{name}:v1"
    with open_remotes() as remotes:
        push_with_referrers(remotes, text)
    with open_remotes() as remotes:
        source = remotes.open_source(Reference.parse(text))
        assert [str(one.digest) for one in source.referrers(descriptor(ONE))] == [BILL.root.digest]
        assert [str(one.digest) for one in source.referrers(descriptor(BILL))] == [SIGNED_BILL.root.digest]
        assert list(source.signatures(descriptor(ONE))) == [(SIGNATURE_TAG, descriptor(SIGNATURE))]
        assert source.resolve(Reference.parse(text)) == descriptor(ONE)
        expected = {"v1", SIGNATURE_TAG, *(fallback_tag(descriptor(one).digest) for one in (ONE, BILL))}
        assert set(source.tags()) == expected


def test_skopeo_finds_a_signature_and_an_import_finds_all_referrers(tmp_path: Path) -> None:
    with open_remotes() as remotes:
        push_with_referrers(remotes, f"oci-archive:{tmp_path}/a.tar:team/app:v1")
        push_with_referrers(remotes, f"oci-archive:{tmp_path}/b.tar:v1")
    assert skopeo.raw(f"oci-archive:{tmp_path}/b.tar:{SIGNATURE_TAG}") == SIGNATURE.manifests[-1].raw
    (imported,) = import_archive(memory_store(), (tmp_path / "a.tar").read_bytes())
    assert (imported.name, imported.referrers, imported.error) == ("docker.io/team/app:v1", 3, None)


def test_a_second_run_with_the_same_referrers_writes_nothing_and_a_new_referrer_is_added(tmp_path: Path) -> None:
    text, path = f"oci-archive:{tmp_path}/a.tar:v1", tmp_path / "a.tar"
    with open_remotes() as remotes:
        push_with_referrers(remotes, text)
    before = path.stat().st_ino
    with open_remotes() as remotes:
        push_with_referrers(remotes, text)
    assert path.stat().st_ino == before
    other = images.artifact(8206, subject=ONE)
    with open_remotes() as remotes:
        target = remotes.open_target(Reference.parse(text))
        push_content(target, other)  # the image is at the target already, so only its tag is set again
        set_tag(target, ONE, "v1")
        found = {str(one.digest) for one in remotes.open_origin(Reference.parse(text)).referrers(descriptor(ONE))}
    assert found == {BILL.root.digest, other.root.digest}


def test_a_digest_tag_is_written_at_once_if_its_image_was_written_before(tmp_path: Path) -> None:
    place = f"oci-archive:{tmp_path}/a.tar"
    write(f"{place}:v1", ONE)
    write(f"{place}:{SIGNATURE_TAG}", SIGNATURE)
    assert read_image(f"{place}:{SIGNATURE_TAG}") == content_of(SIGNATURE)


# Concurrent writers, crashes and full disks


def test_tags_that_are_set_at_once_are_all_written(tmp_path: Path) -> None:
    built = {f"v{number}": images.image(8300 + number, layers=1) for number in range(12)}
    with open_remotes() as remotes:
        target = remotes.open_target(Reference.parse(f"oci-archive:{tmp_path}/a.tar:v0"))
        for image in built.values():
            push_content(target, image)
        barrier = threading.Barrier(len(built))

        def tag(name: str) -> None:
            barrier.wait()
            set_tag(target, built[name], name)

        threads = [threading.Thread(target=tag, args=(name,)) for name in built]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert tags_of(f"oci-archive:{tmp_path}/a.tar") == sorted(built)
    for name, image in built.items():
        assert read_image(f"oci-archive:{tmp_path}/a.tar:{name}") == content_of(image)


def test_two_runs_that_write_one_archive_keep_each_other_s_tags(tmp_path: Path) -> None:
    place = f"oci-archive:{tmp_path}/a.tar"
    with open_remotes() as one, open_remotes() as other:
        for number in range(3):
            push(one, f"{place}:one-{number}", ONE)
            push(other, f"docker-archive:{tmp_path}/a.tar:two-{number}", TWO)
    assert tags_of(place) == [f"{name}-{number}" for name in ("one", "two") for number in range(3)]


SEVERAL = """
import sys
from tests import images
from tests.remotes.test_archive_remote_target import write

place, name, first = sys.argv[1:]
for number in range(5):
    write(f"{place}:{name}-{number}", images.image(int(first) + number, layers=1, layer_bytes=500_000))
"""


def test_two_processes_that_write_one_archive_at_once_lose_no_tag(tmp_path: Path) -> None:
    place = f"oci-archive:{tmp_path}/a.tar"
    argv = [[sys.executable, "-c", SEVERAL, place, name, first] for name, first in (("one", "8310"), ("two", "8320"))]
    writers = [subprocess.Popen(one, cwd=REPOSITORY) for one in argv]
    assert [writer.wait(timeout=PATIENCE_S) for writer in writers] == [0, 0]
    assert tags_of(place) == [f"{name}-{number}" for name in ("one", "two") for number in range(5)]
    for number in range(5):
        image = images.image(8320 + number, layers=1, layer_bytes=500_000)
        assert read_image(f"{place}:two-{number}") == content_of(image)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.tar"]


WRITE = """
import os, signal, sys
from prefect_dist.storage.archive import writing
from tests.remotes.test_archive_remote_target import TWO, write

add, left = writing.tar.write, int(sys.argv[2])

def count(*arguments, **options):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    add(*arguments, **options)

writing.tar.write = count
write(sys.argv[1], TWO)
"""


def run(script: str, *arguments: str | int, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    prefix = [] if limit is None else ["prlimit", f"--fsize={limit}"]
    argv = [*prefix, sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=PATIENCE_S)


@pytest.mark.parametrize("entries", [0, 3, 6])
def test_a_killed_writer_leaves_the_previous_archive_and_the_next_run_succeeds(tmp_path: Path, entries: int) -> None:
    place, path = f"oci-archive:{tmp_path}/a.tar", tmp_path / "a.tar"
    write(f"{place}:v1", ONE)
    before = path.read_bytes()
    assert run(WRITE, f"{place}:v2", entries).returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    write(f"{place}:v2", TWO)
    assert tags_of(place) == ["v1", "v2"]
    assert list(tmp_path.iterdir()) == [path]


FULL = """
import signal, sys
from prefect_dist.storage import StoreFull
from tests.remotes.test_archive_remote_target import TWO, write

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    write(sys.argv[1], TWO)
except StoreFull as exc:
    print(exc)
"""


def test_a_full_disk_leaves_the_previous_archive(tmp_path: Path) -> None:
    place, path = f"oci-archive:{tmp_path}/a.tar", tmp_path / "a.tar"
    write(f"{place}:v1", ONE)
    before = path.read_bytes()
    done = run(FULL, f"{place}:v2", limit=len(before))
    assert done.stdout.startswith(f"{place}: writing: File too large; free some space"), done.stderr
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (before, [path])


def test_an_abort_ends_the_writing_and_leaves_the_previous_archive(tmp_path: Path) -> None:
    place = f"oci-archive:{tmp_path}/a.tar"
    write(f"{place}:v1", ONE)
    before = digest_of_file(tmp_path / "a.tar")
    with open_remotes() as remotes:
        target = remotes.open_target(Reference.parse(f"{place}:v2"))
        push_content(target, TWO)
        remotes.abort()
        with pytest.raises(Unavailable, match="aborted"):
            set_tag(target, TWO, "v2")
    assert digest_of_file(tmp_path / "a.tar") == before


def test_a_large_image_is_written_in_bounded_memory(tmp_path: Path) -> None:
    big = images.image(8207, layers=1, layer_bytes=48 * 2**20)
    store = open_store(str(tmp_path / "store"))
    put(store, big, "app:v1")
    with open_remotes(store) as remotes:
        target = remotes.open_target(Reference.parse(f"oci-archive:{tmp_path}/a.tar:v1"))
        push_content(target, big)
        tracemalloc.start()
        try:
            set_tag(target, big, "v1")
            set_tag(target, big, "v2")  # copies the content from the store again
            assert tracemalloc.get_traced_memory()[1] < 24 * 2**20
        finally:
            tracemalloc.stop()
    assert read_image(f"oci-archive:{tmp_path}/a.tar:v2") == content_of(big)
