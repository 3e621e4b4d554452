"""Layouts on object stores: in memory, and on a real S3 server with credentials from the environment."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest

from prefect_dist.ocispec import Digest, manifest
from prefect_dist.ocispec.errors import Corrupt, Denied, DistError, InvalidInput, NotFound, Unavailable, Unsupported
from prefect_dist.ocispec.referrers import make_entry
from prefect_dist.remotes.layout_remote import LayoutRemote
from tests import images
from tests.cli.dist import command
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import find_missing
from tests.peers.seaweedfs import S3Server
from tests.remotes.layouts import (
    MARKER,
    REF_NAME,
    blob,
    entry,
    fetch,
    layout,
    open_layouts,
    publish,
    root_of,
    upload,
    write_layout,
)
from tests.remotes.test_layout_writing import REPOSITORY, TAG

ONE, TWO = images.image(2000), images.image(2001)
BIG = os.urandom(9_000_000)  # two parts, and two pieces


def variables(server: S3Server) -> dict[str, str]:
    """Return the environment variables of the AWS tools for a server."""
    return {
        "AWS_ACCESS_KEY_ID": server.key,
        "AWS_SECRET_ACCESS_KEY": server.secret,
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_DEFAULT_REGION": server.region,
    }


class ObjectPlace:
    """A location on an object store, and its objects as another program sees them."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self.url = url
        self._fs, self._root = fsspec.core.url_to_fs(url, **options)

    def read(self, name: str) -> bytes:
        """Return an object."""
        content: bytes = self._fs.cat_file(f"{self._root}/{name}")
        return content

    def write(self, name: str, data: bytes) -> None:
        """Replace an object."""
        self._fs.pipe_file(f"{self._root}/{name}", data)

    def names(self) -> set[str]:
        """Return the names of all objects."""
        return {path.removeprefix(self._root).lstrip("/") for path in self._fs.find(self._root)}

    def tags(self) -> dict[str, str]:
        """Return the digest of each tag."""
        listed = json.loads(self.read("index.json"))["manifests"]
        return {one["annotations"][REF_NAME]: one["digest"] for one in listed}


@pytest.fixture(params=["memory", "s3"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ObjectPlace:
    name = uuid.uuid4().hex
    if request.param == "memory":
        return ObjectPlace(f"memory://{name}/layout", {})
    server: S3Server = request.getfixturevalue("s3")
    for key, value in variables(server).items():
        monkeypatch.setenv(key, value)
    return ObjectPlace(f"{server.url}/{name}/layout", {**server.storage_options, "skip_instance_cache": True})


@pytest.fixture
def remote() -> Iterator[LayoutRemote]:
    with open_layouts() as remote:
        yield remote


def test_a_new_layout_has_the_content_the_tag_and_nothing_else(place: ObjectPlace) -> None:
    with open_layouts() as remote:
        publish(remote.open_target(layout(place.url)), ONE, "v1")
        upload(remote.open_target(layout(place.url)), BIG)
    content = {f"blobs/{digest.replace(':', '/')}": data for digest, data in ONE.blobs.items()}
    content |= {f"blobs/{one.digest.replace(':', '/')}": one.raw for one in ONE.manifests}
    content |= {f"blobs/sha256/{blob(BIG).digest.hex}": BIG, "oci-layout": MARKER.encode()}
    assert place.names() == {*content, "index.json"}
    assert {name: place.read(name) for name in content} == content
    assert json.loads(place.read("index.json"))["manifests"] == [entry(ONE, {REF_NAME: "v1"})]


def test_a_layout_of_another_program_is_read_and_extended(remote: LayoutRemote, place: ObjectPlace, tmp_path: Path) -> None:
    made = write_layout(tmp_path, {"v1": ONE})
    for path in made.rglob("*"):
        if path.is_file():
            place.write(str(path.relative_to(made)), path.read_bytes())
    source = remote.open_source(layout(place.url))
    assert source.resolve(layout(place.url, ":v1")) == source.resolve(layout(place.url)) == root_of(ONE)
    assert fetch(source, root_of(ONE)) == ONE.manifests[-1].raw
    target = remote.open_target(layout(place.url))
    assert target.has(root_of(ONE), tag="v1") is True
    publish(target, TWO, "v2")
    assert list(source.tags()) == ["v1", "v2"]
    assert target.delete_tag("v1") is True
    assert place.tags() == {"v2": TWO.root.digest}


@pytest.mark.parametrize("offset", [0, 1, 8 * 1024 * 1024, len(BIG)])
def test_a_blob_is_read_from_any_offset(remote: LayoutRemote, place: ObjectPlace, offset: int) -> None:
    place.write(f"blobs/sha256/{blob(BIG).digest.hex}", BIG)
    assert fetch(remote.open_source(layout(place.url)), blob(BIG), offset=offset) == BIG[offset:]


def test_missing_and_damaged_content_is_named(remote: LayoutRemote, place: ObjectPlace) -> None:
    source, data = remote.open_source(layout(place.url)), b"content"
    with pytest.raises(NotFound, match=f"oci:{place.url}: no image layout found"):
        source.resolve(layout(place.url, ":v1"))
    assert source.exists() is False
    with pytest.raises(NotFound, match=f"oci:{place.url}: blob {blob(data).digest}: not found"):
        fetch(source, blob(data))
    place.write(f"blobs/sha256/{blob(data).digest.hex}", b"longer content")
    with pytest.raises(Corrupt, match=f"expected 7 bytes, oci:{place.url} has 14"):
        fetch(source, blob(data))
    with pytest.raises(Corrupt, match="remove this file from the layout"):
        remote.open_target(layout(place.url)).has(blob(data))


@pytest.mark.parametrize("index", [b"", b"{", b'{"manifests":[1]}'])
def test_an_invalid_index_is_neither_read_nor_overwritten(remote: LayoutRemote, place: ObjectPlace, index: bytes) -> None:
    place.write("index.json", index)
    with pytest.raises(InvalidInput, match=r"index\.json"):
        remote.resolve(layout(place.url, ":v1"))
    with pytest.raises(InvalidInput, match=r"index\.json"):
        publish(remote.open_target(layout(place.url)), ONE, "v1")
    assert place.read("index.json") == index


def test_an_oversized_index_is_not_read(remote: LayoutRemote, place: ObjectPlace) -> None:
    place.write("index.json", bytes(manifest.MAX_BYTES + 1))
    with pytest.raises(Unsupported, match=r"index\.json: expected at most"):
        remote.resolve(layout(place.url, ":v1"))


def test_wrong_content_never_becomes_visible(place: ObjectPlace) -> None:
    with open_layouts() as remote, pytest.raises(Corrupt):
        upload(remote.open_target(layout(place.url)), BIG[:-1] + b"x", blob(BIG))
    assert not any(name.startswith(("blobs/", "ingest/")) for name in place.names())
    with open_layouts() as remote:
        upload(remote.open_target(layout(place.url)), BIG)
    assert place.read(f"blobs/sha256/{blob(BIG).digest.hex}") == BIG


def test_an_interrupted_upload_resumes_in_the_same_run(remote: LayoutRemote, place: ObjectPlace) -> None:
    def break_off(_offset: int) -> Iterator[bytes]:
        yield BIG[:5_000_000]
        raise Unavailable("the source is gone")

    target = remote.open_target(layout(place.url))
    with pytest.raises(Unavailable, match="the source is gone"):
        target.upload(blob(BIG), break_off, observer=lambda *_: None)
    assert upload(target, BIG) == [5_000_000]
    assert place.read(f"blobs/sha256/{blob(BIG).digest.hex}") == BIG


def test_a_change_by_another_writer_between_reading_and_writing_stays(
    remote: LayoutRemote, place: ObjectPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = remote.open_target(layout(place.url))
    publish(target, ONE, "v1")
    backend = remote._open(layout(place.url)).files.backend  # type: ignore[union-attr]
    replace, pending = backend.replace, ["once"]

    def interfere(*args: Any) -> bool:
        if pending:
            pending.clear()
            with open_layouts() as other:
                publish(other.open_target(layout(place.url)), TWO, "theirs")
        return bool(replace(*args))

    monkeypatch.setattr(backend, "replace", interfere)
    target.put(ONE.manifests[-1].raw, root_of(ONE), tag="ours")
    assert not pending
    assert place.tags() == {"v1": ONE.root.digest, "theirs": TWO.root.digest, "ours": ONE.root.digest}


def test_referrers_are_listed_under_the_fallback_tag(remote: LayoutRemote, place: ObjectPlace) -> None:
    target, referrer = remote.open_target(layout(place.url)), images.artifact(2010, subject=ONE)
    publish(target, ONE, "v1")
    raw = referrer.manifests[-1].raw
    target.put(raw, root_of(referrer))
    target.list_referrer(Digest.parse(ONE.root.digest), make_entry(raw, root_of(referrer), at="test"))
    [found] = remote.open_source(layout(place.url)).referrers(root_of(ONE))
    assert (str(found.digest), found.artifact_type) == (referrer.root.digest, images.ARTIFACT)


def test_a_prefix_with_other_objects_is_refused(remote: LayoutRemote, place: ObjectPlace) -> None:
    place.write("report.csv", b"x")
    with pytest.raises(InvalidInput, match=r"it has other files, such as 'report\.csv'"):
        publish(remote.open_target(layout(place.url)), ONE, "v1")
    assert place.names() == {"report.csv"}


# S3


def test_processes_that_write_at_once_lose_nothing(s3: S3Server) -> None:
    url = f"{s3.url}/{uuid.uuid4().hex}"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", TAG, url, sender],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | variables(s3),
        )
        for sender in "ab"
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        _, errors = writer.communicate()
        assert (writer.returncode, errors) == (0, b"")
    tags = ObjectPlace(url, s3.storage_options).tags()
    assert tags.keys() == {f"{sender}-{number}" for sender in "ab" for number in range(10)}


def test_wrong_credentials_are_denied_and_named(s3: S3Server, remote: LayoutRemote, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in variables(s3).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    url = f"{s3.url}/{uuid.uuid4().hex}"
    with pytest.raises(Denied, match="check the credentials and their permissions"):
        remote.resolve(layout(url, ":v1"))
    with pytest.raises(Denied):
        publish(remote.open_target(layout(url)), ONE, "v1")


def test_a_missing_bucket_is_named(s3: S3Server, remote: LayoutRemote, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in variables(s3).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(DistError, match="missing-bucket"):
        publish(remote.open_target(layout("s3://missing-bucket/x")), ONE, "v1")


@pytest.mark.parametrize("names", ["aws", "fsspec"])
def test_commands_get_credentials_and_endpoint_from_the_environment(s3: S3Server, tmp_path: Path, names: str) -> None:
    place = write_layout(tmp_path / "layout", {"v1": ONE})
    url = f"{s3.url}/{uuid.uuid4().hex}"
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "FSSPEC_"))}
    given = (
        variables(s3)
        if names == "aws"
        else {
            "FSSPEC_S3_KEY": s3.key,
            "FSSPEC_S3_SECRET": s3.secret,
            "FSSPEC_S3_ENDPOINT_URL": s3.endpoint,
            "AWS_DEFAULT_REGION": s3.region,
        }
    )

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        argv = command("--store", tmp_path / "store", *arguments)
        return subprocess.run(argv, capture_output=True, text=True, env=plain | given, check=False)

    copied = run("copy", "--direct", f"oci:{place}:v1", f"oci:{url}:v1")
    assert copied.returncode == 0, copied.stderr
    listed = run("tags", f"oci:{url}")
    assert listed.stdout == "v1\n", listed.stderr
    assert ObjectPlace(url, s3.storage_options).tags() == {"v1": ONE.root.digest}

    (tmp_path / "images.txt").write_text(f"oci:{url}:v1\n")
    with FakeRegistry() as target:
        seeded = run("seed", "--direct", tmp_path / "images.txt", "--to", target.host)
        assert "1 added" in seeded.stdout, seeded.stderr
        assert find_missing(target, url.rpartition("/")[2], ONE, "v1") == []
