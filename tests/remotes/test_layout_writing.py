"""Writing images to a layout: its other content stays, wrong content never becomes visible, and other writers lose nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_dist.ocispec import Digest, manifest
from prefect_dist.ocispec.errors import Corrupt, Denied, DistError, InvalidInput, Unavailable, Unsupported
from prefect_dist.ocispec.referrers import make_entry
from prefect_dist.remotes import Target
from prefect_dist.remotes.layout_remote import LayoutRemote
from prefect_dist.storage import StoreFull, open_store
from tests import images
from tests.remotes.layouts import (
    MARKER,
    REF_NAME,
    blob,
    blob_file,
    entry,
    files_in,
    layout,
    names_in,
    open_layouts,
    publish,
    read_index,
    root_of,
    upload,
    write_blobs,
    write_index,
    write_layout,
)
from tests.storage.steps import Steps
from tests.storage.test_shared_store import run_as

REPOSITORY = Path(__file__).parents[2]
ONE, TWO = images.image(1700), images.image(1701)
BIG = bytes(range(256)) * 8192  # 2 MiB: its ingest is recorded when it begins


@pytest.fixture
def remote() -> Iterator[LayoutRemote]:
    with open_layouts() as remote:
        yield remote


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "layout"


@pytest.fixture
def target(remote: LayoutRemote, place: Path) -> Target:
    return remote.open_target(layout(place))


def missing(place: Path, image: images.BuiltImage) -> list[str]:
    """Return the digests of an image whose blobs are missing or different."""
    content = image.blobs | {one.digest: one.raw for one in image.manifests}
    paths = {digest: blob_file(place, digest) for digest in content}
    return [digest for digest, path in paths.items() if not path.exists() or path.read_bytes() != content[digest]]


# The result


def test_a_new_layout_has_the_content_the_tag_and_nothing_else(place: Path) -> None:
    with open_layouts() as remote:
        publish(remote.open_target(layout(place)), ONE, "v1")
    blobs = {f"blobs/{digest.replace(':', '/')}" for digest in ONE.descriptors}
    assert files_in(place) == {"oci-layout", "index.json", "index.json.lock", *blobs}
    assert missing(place, ONE) == []
    assert (place / "oci-layout").read_text() == MARKER
    assert read_index(place) == {
        "schemaVersion": 2,
        "mediaType": images.OCI_INDEX,
        "manifests": [entry(ONE, {REF_NAME: "v1"})],
    }


def test_other_tags_fields_and_annotations_stay(target: Target, place: Path) -> None:
    write_blobs(place, ONE, TWO)
    others = [
        entry(ONE, {REF_NAME: "old", "org.example": "kept"}, platform={"os": "linux", "architecture": "s390x"}, vendor=[1, {}]),
        entry(TWO),
        entry(ONE, {REF_NAME: "docker.io/library/redis:v1"}),
    ]
    write_index(
        place, *others[:1], entry(TWO, {REF_NAME: "v1"}), *others[1:], annotations={"org.example": "index"}, vendor={"x": None}
    )
    publish(target, ONE, "v1")
    index = read_index(place)
    assert index["manifests"] == [*others[:1], entry(ONE, {REF_NAME: "v1"}), *others[1:]]
    assert (index["annotations"], index["vendor"]) == ({"org.example": "index"}, {"x": None})


def test_a_tag_that_leads_to_the_image_already_changes_nothing(target: Target, place: Path) -> None:
    write_blobs(place, ONE, TWO)
    write_index(place, entry(ONE, {REF_NAME: "v1", "io.containerd.image.name": "docker.io/library/x:v1"}), entry(TWO))
    before = (place / "index.json").read_bytes()
    publish(target, ONE, "v1")
    assert (place / "index.json").read_bytes() == before


def test_a_moved_tag_keeps_its_place(target: Target, place: Path) -> None:
    write_layout(place, {"v1": ONE, "v2": ONE, "v3": ONE})
    publish(target, TWO, "v2")
    assert list(names_in(place).items()) == [("v1", ONE.root.digest), ("v2", TWO.root.digest), ("v3", ONE.root.digest)]


def test_a_second_run_finds_all_content_and_the_tag(remote: LayoutRemote, target: Target, place: Path) -> None:
    assert target.has(root_of(ONE)) is False
    assert not place.exists()
    publish(target, ONE, "v1")
    assert target.has(root_of(ONE), tag="v1") is True
    assert target.has(root_of(ONE), tag="v2") is False
    assert remote.open_origin(layout(place)).resolve(layout(place, ":v1")) == root_of(ONE)
    before = (place / "index.json").stat()
    target.put(ONE.manifests[-1].raw, root_of(ONE), tag="v1")
    assert (place / "index.json").stat() == before


def test_the_tag_of_a_full_name_is_no_tag_of_a_target(target: Target, place: Path) -> None:
    write_layout(place, {"docker.io/library/redis:v1": ONE})
    assert target.has(root_of(ONE), tag="v1") is False


def test_an_image_is_written_by_digest_into_a_new_layout(remote: LayoutRemote, target: Target, place: Path) -> None:
    target.put(ONE.manifests[-1].raw, root_of(ONE))
    assert remote.open_source(layout(place)).resolve(layout(place, f"@{ONE.root.digest}")) == root_of(ONE)


def test_content_is_written_by_sha512(target: Target, place: Path) -> None:
    described = blob(BIG, algorithm="sha512")
    upload(target, BIG, described)
    assert blob_file(place, described.digest).read_bytes() == BIG


@pytest.mark.parametrize("tag", ["", "a b", "../x", "a/b", "x" * 129])
def test_an_invalid_tag_is_refused(target: Target, place: Path, tag: str) -> None:
    with pytest.raises(InvalidInput, match="bad tag"):
        target.put(ONE.manifests[-1].raw, root_of(ONE), tag=tag)
    with pytest.raises(InvalidInput, match="bad tag"):
        target.delete_tag(tag)
    assert not place.exists()


def test_an_index_does_not_grow_beyond_its_limit(target: Target, place: Path) -> None:
    write_layout(place, {"v1": ONE})
    write_index(place, entry(ONE, {REF_NAME: "v1", "x": "y" * (manifest.MAX_BYTES - 300)}))
    before = (place / "index.json").read_bytes()
    with pytest.raises(Unsupported, match=r"index.json would have .* bytes, expected at most"):
        target.put(ONE.manifests[-1].raw, root_of(ONE), tag="v2")
    assert (place / "index.json").read_bytes() == before


# Verification and resumption


@pytest.mark.parametrize("data", [BIG[:-1], BIG + b"x", BIG[:-1] + b"x", b""])
def test_wrong_content_never_becomes_visible_and_the_next_attempt_starts_over(target: Target, place: Path, data: bytes) -> None:
    described = blob(BIG)
    with pytest.raises(Corrupt):
        upload(target, data, described)
    assert not blob_file(place, described.digest).exists()
    assert upload(target, BIG, described) in ([0], [len(data)])
    assert blob_file(place, described.digest).read_bytes() == BIG


def test_wrong_bytes_of_a_manifest_are_refused(target: Target, place: Path) -> None:
    with pytest.raises(Corrupt, match=r"expected .*, the caller has"):
        target.put(ONE.manifests[-1].raw + b" ", root_of(ONE), tag="v1")
    assert not place.exists()


@pytest.mark.parametrize("size", [1000, len(BIG)])
def test_an_interrupted_upload_resumes_in_another_run(place: Path, size: int) -> None:
    data, asked = BIG[:size], list[int]()

    def break_off(offset: int) -> Iterator[bytes]:
        asked.append(offset)
        yield data[: size // 2]
        raise Unavailable("the source is gone")

    with open_layouts() as remote, pytest.raises(Unavailable, match="the source is gone"):
        remote.open_target(layout(place)).upload(blob(data), break_off, observer=lambda *_: None)
    assert not blob_file(place, blob(data).digest).exists()
    with open_layouts() as remote:
        assert [*asked, *upload(remote.open_target(layout(place)), data)] == [0, size // 2]
    assert blob_file(place, blob(data).digest).read_bytes() == data
    assert not (place / "ingest").exists()


@pytest.mark.parametrize("size", [0, 10, len(ONE.manifests[-1].raw) + 1])
def test_existing_content_of_another_size_is_named_and_not_tagged(target: Target, place: Path, size: int) -> None:
    write_blobs(place, ONE)
    write_index(place)
    raw, path = ONE.manifests[-1].raw, blob_file(place, ONE.root.digest)
    path.write_bytes(bytes(size))
    expected = f"expected {len(raw)} bytes, oci:{place} has {size}; remove this file from the layout"
    for work in (
        lambda: target.has(root_of(ONE)),
        lambda: target.put(raw, root_of(ONE), tag="v1"),
        lambda: upload(target, raw, root_of(ONE)),
    ):
        with pytest.raises(Corrupt, match=expected):
            work()
    assert names_in(place) == {}


def test_abort_ends_an_upload_in_flight(remote: LayoutRemote, target: Target, place: Path) -> None:
    def read(_offset: int) -> Iterator[bytes]:
        yield BIG[:1000]
        remote.abort()
        yield BIG[1000:]

    with pytest.raises(Unavailable, match=f"writing to oci:{place} was aborted"):
        target.upload(blob(BIG), read, observer=lambda *_: None)
    assert not blob_file(place, blob(BIG).digest).exists()


def test_old_leftovers_are_removed_and_new_ones_stay(place: Path) -> None:
    (place / "ingest").mkdir(parents=True)
    write_index(place)
    old, new = place / "ingest" / ("a" * 64), place / "ingest" / ("b" * 64)
    for path in (old, new):
        path.write_bytes(b"unfinished")
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    with open_layouts() as remote:
        publish(remote.open_target(layout(place)), ONE, "v1")
    assert [path.name for path in (place / "ingest").iterdir()] == [new.name]


# Locations


@pytest.mark.parametrize("is_used", [True, False])
def test_the_location_of_a_content_store_is_refused(target: Target, place: Path, *, is_used: bool) -> None:
    store = open_store(str(place))
    store.update_index()
    if is_used:
        store.names.put("name", root_of(ONE), source="x")
    before = files_in(place)
    with pytest.raises(InvalidInput, match="the location has a content store of dist"):
        publish(target, ONE, "v1")
    assert files_in(place) == before


def test_a_directory_with_other_files_is_refused(target: Target, place: Path) -> None:
    place.mkdir()
    (place / "thesis.tex").touch()
    with pytest.raises(InvalidInput, match=r"it has other files, such as 'thesis.tex'; choose another directory"):
        publish(target, ONE, "v1")
    assert files_in(place) == {"thesis.tex"}


def test_an_empty_directory_of_a_new_file_system_is_accepted(target: Target, place: Path) -> None:
    (place / "lost+found").mkdir(parents=True)
    (place / ".DS_Store").touch()
    (place / "index.json.0123.new").touch()
    publish(target, ONE, "v1")
    assert names_in(place) == {"v1": ONE.root.digest}


def test_a_layout_of_another_version_is_not_changed(target: Target, place: Path) -> None:
    write_layout(place, {"v1": ONE})
    (place / "oci-layout").write_text('{"imageLayoutVersion":"2.0.0"}')
    before = files_in(place), (place / "index.json").read_bytes()
    with pytest.raises(Unsupported, match=r"expected an image layout of version 1.0.0"):
        publish(target, TWO, "v2")
    assert (files_in(place), (place / "index.json").read_bytes()) == before


@pytest.mark.parametrize("index", [b"", b"{}x", b'{"manifests":[{}]}'])
def test_an_invalid_index_is_not_overwritten(target: Target, place: Path, index: bytes) -> None:
    place.mkdir()
    (place / "index.json").write_bytes(index)
    with pytest.raises(InvalidInput, match=r"index.json"):
        publish(target, ONE, "v1")
    assert (place / "index.json").read_bytes() == index


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
def test_a_read_only_directory_is_denied(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in (tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(0o755)
    write_layout(tmp_path / "layout", {"v1": ONE})

    def use() -> None:
        with open_layouts() as remote:
            publish(remote.open_target(layout(tmp_path / "layout")), TWO, "v2")

    said = run_as(4001, use)
    assert said.startswith(f"{Denied.__name__}: ")
    assert str(tmp_path / "layout") in said
    assert names_in(tmp_path / "layout") == {"v1": ONE.root.digest}


FILL = """
import resource, sys
from tests.remotes.layouts import layout, open_layouts, upload
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with open_layouts() as remote:
    try:
        upload(remote.open_target(layout(sys.argv[1])), bytes(range(256)) * 8192)
    except Exception as exc:
        print(f"{type(exc).__name__}: {exc}")
"""


def test_a_full_disk_is_named_and_the_next_run_resumes(place: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FILL, place], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{StoreFull.__name__}: ")
    assert "free some space and run again, the run resumes" in done.stdout
    assert not blob_file(place, blob(BIG).digest).exists()
    with open_layouts() as remote:
        assert upload(remote.open_target(layout(place)), BIG) == [1_000_000]
    assert blob_file(place, blob(BIG).digest).read_bytes() == BIG


# Other processes

TAG = """
import sys
from tests import images
from tests.remotes.layouts import layout, open_layouts, publish
place, sender = sys.argv[1:]
built = [images.image(1750 + number, layers=1) for number in range(10)]
print("ready", flush=True)
sys.stdin.read()
with open_layouts() as remote:
    target = remote.open_target(layout(place))
    for number, image in enumerate(built):
        publish(target, image, f"{sender}-{number}")
"""


def test_processes_that_write_at_once_lose_nothing(place: Path) -> None:
    write_layout(place, {"v1": ONE})
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", TAG, place, sender],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for sender in "abc"
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
    while any(writer.poll() is None for writer in writers):
        json.loads((place / "index.json").read_bytes())  # whole at any time
    for writer in writers:
        assert writer.stderr is not None
        assert (writer.wait(), writer.stderr.read()) == (0, b"")
        for pipe in (writer.stdout, writer.stderr):
            assert pipe is not None
            pipe.close()
    assert names_in(place).keys() == {"v1", *(f"{sender}-{number}" for sender in "abc" for number in range(10))}
    for number in range(10):
        assert missing(place, images.image(1750 + number, layers=1)) == []
    assert not (place / "ingest").exists()


def is_killed_before(step: int, place: Path, root: Path) -> bool:
    """Write an image in another process, which is killed before a step. Return False if the process needs fewer steps."""

    def kill_at(number: int) -> None:
        if number == step:
            os.kill(os.getpid(), signal.SIGKILL)

    if (pid := os.fork()) == 0:
        try:
            Steps(root, setattr, before=kill_at)
            with open_layouts() as remote:
                publish(remote.open_target(layout(place)), TWO, "v2")
        except BaseException:  # noqa: BLE001 - the parent reports the exit status
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


@pytest.mark.parametrize("existing", [True, False])
def test_after_a_kill_at_any_step_the_layout_is_sound_and_the_next_run_completes_it(tmp_path: Path, *, existing: bool) -> None:
    step = 0
    while True:
        place = tmp_path / str(step)
        if existing:
            write_layout(place, {"v1": ONE})
        was_killed = is_killed_before(step, place, tmp_path)
        for path in (place / "blobs").rglob("*"):
            assert path.is_dir() or str(Digest.of(path.read_bytes())) == f"{path.parent.name}:{path.name}"
        if existing:
            assert names_in(place).items() <= {"v1": ONE.root.digest, "v2": TWO.root.digest}.items()
        if (place / "index.json").exists() and "v2" in names_in(place):
            assert missing(place, TWO) == []
        with open_layouts() as remote:
            publish(remote.open_target(layout(place)), TWO, "v2")
        assert missing(place, TWO) == []
        assert names_in(place) == ({"v1": ONE.root.digest} if existing else {}) | {"v2": TWO.root.digest}
        if not was_killed:
            break
        step += 1
    assert step > 20


# Referrers and deletions


def list_referrer(target: Target, referrer: images.BuiltImage, subject: images.BuiltImage) -> None:
    raw = referrer.manifests[-1].raw
    target.put(raw, root_of(referrer))
    target.list_referrer(Digest.parse(subject.root.digest), make_entry(raw, root_of(referrer), at="test"))


def test_referrers_are_listed_under_the_fallback_tag_each_once(remote: LayoutRemote, target: Target, place: Path) -> None:
    publish(target, ONE, "v1")
    first, second = images.artifact(1710, subject=ONE), images.artifact(1711, subject=ONE, annotations={"a": "b"})
    for referrer in (first, second, first):
        list_referrer(target, referrer, ONE)
    tag = ONE.root.digest.replace(":", "-")
    listed = json.loads(blob_file(place, names_in(place)[tag]).read_bytes())
    expected = [entry(first, artifactType=images.ARTIFACT), entry(second, {"a": "b"}, artifactType=images.ARTIFACT)]
    assert [{**one} for one in listed["manifests"]] == expected
    assert [one.digest for one in remote.open_source(layout(place)).referrers(root_of(ONE))] == [
        root_of(first).digest,
        root_of(second).digest,
    ]


def test_other_content_under_a_fallback_tag_is_not_overwritten(target: Target, place: Path) -> None:
    write_layout(place, {"v1": ONE, ONE.root.digest.replace(":", "-"): TWO})
    before = (place / "index.json").read_bytes()
    with pytest.raises(Unsupported, match="expected an OCI index of referrers"):
        list_referrer(target, images.artifact(1712, subject=ONE), ONE)
    assert (place / "index.json").read_bytes() == before


def test_a_deletion_removes_only_its_entries(target: Target, place: Path) -> None:
    write_layout(place, {"v1": ONE, "v2": TWO, "latest": ONE}, ONE)
    assert target.delete_tag("v1")
    changed = (place / "index.json").stat()
    assert target.delete_tag("v1")
    assert (place / "index.json").stat() == changed
    assert names_in(place) == {"v2": TWO.root.digest, "latest": ONE.root.digest, None: ONE.root.digest}
    target.delete(Digest.parse(ONE.root.digest))
    target.delete(Digest.parse(ONE.root.digest))
    assert names_in(place) == {"v2": TWO.root.digest}
    assert missing(place, ONE) == []


def test_a_deletion_creates_no_layout(target: Target, place: Path) -> None:
    assert target.delete_tag("v1")
    assert not place.exists()


def test_a_location_that_is_a_file_is_refused(remote: LayoutRemote, place: Path) -> None:
    place.write_bytes(b"not a directory")
    with pytest.raises(DistError, match="Not a directory"):
        publish(remote.open_target(layout(place)), ONE, "v1")
    with pytest.raises(DistError, match="Not a directory"):
        remote.resolve(layout(place, ":v1"))
