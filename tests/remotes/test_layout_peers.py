"""Layouts of other programs: skopeo and umoci read what was written, byte for byte, and their own layouts are read."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.ocispec.referrers import make_entry
from prefect_dist.remotes.layout_remote import LayoutRemote
from tests import images
from tests.fakes.registry import FakeRegistry
from tests.peers import skopeo
from tests.peers.processes import require
from tests.peers.registry import CncfRegistry, cncf_registry
from tests.remotes.layouts import fetch, layout, names_in, open_layouts, publish, root_of, upload

AMD, ARM = images.image(2100, layers=2), images.image(2100, layers=2, platform="linux/arm64/v8")
INDEX = images.index([AMD, ARM])
DOCKER = images.index(
    [images.image(2101, docker=True), images.image(2101, docker=True, platform="linux/arm64/v8")], docker=True
)
TIMEOUT_S = 60


@pytest.fixture
def remote() -> Iterator[LayoutRemote]:
    with open_layouts() as remote:
        yield remote


@pytest.fixture(scope="module")
def cncf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CncfRegistry]:
    with cncf_registry(tmp_path_factory.mktemp("cncf-layouts")) as cncf:
        yield cncf


def umoci(*arguments: object) -> str:
    """Run umoci, and return its output."""
    argv = [require("umoci", "umoci"), *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=TIMEOUT_S).stdout


def read_image(remote: LayoutRemote, place: Path, tail: str) -> set[str]:
    """Read an image with its content through our code, and return the digests."""
    source, pending, seen = remote.open_source(layout(place)), [remote.resolve(layout(place, tail)).descriptor], set[str]()
    while pending:
        one = pending.pop()
        raw = fetch(source, one)
        assert Digest.of(raw, algorithm=one.digest.algorithm) == one.digest
        seen.add(str(one.digest))
        if one.is_manifest:
            document = json.loads(raw)
            children = document.get("manifests") or [document["config"], *document["layers"]]
            pending += [Descriptor.from_json(child, at="test") for child in children]
    return seen


@pytest.mark.parametrize("image", [AMD, INDEX], ids=["image", "index"])
def test_skopeo_copies_a_written_layout_to_a_registry_byte_for_byte(
    remote: LayoutRemote, cncf: CncfRegistry, tmp_path: Path, image: images.BuiltImage
) -> None:
    publish(remote.open_target(layout(tmp_path / "layout")), image, "v1")
    assert skopeo.raw(f"oci:{tmp_path}/layout:v1") == image.manifests[-1].raw
    name = f"docker://{cncf.host}/{tmp_path.name.replace('_', '-')}:v1"
    skopeo.copy(f"oci:{tmp_path}/layout:v1", name)
    assert skopeo.raw(name) == image.manifests[-1].raw
    skopeo.copy(name, f"oci:{tmp_path}/back:v1")
    assert read_image(remote, tmp_path / "back", ":v1") == set(image.descriptors)


def test_docker_types_stay_although_skopeo_does_not_list_them(remote: LayoutRemote, tmp_path: Path) -> None:
    """skopeo 1.9 ignores entries of an index whose type is Docker's. Other types would change the digest."""
    place = tmp_path / "layout"
    publish(remote.open_target(layout(place)), DOCKER, "v1")
    assert read_image(remote, place, ":v1") == set(DOCKER.descriptors)
    assert remote.resolve(layout(place, ":v1")).descriptor == root_of(DOCKER)
    with pytest.raises(skopeo.SkopeoError, match="no descriptor found"):
        skopeo.raw(f"oci:{place}:v1")


def test_a_layout_of_skopeo_is_read_and_extended(remote: LayoutRemote, tmp_path: Path) -> None:
    place = tmp_path / "layout"
    with FakeRegistry() as registry:
        images.load(registry, "app", INDEX, "v1")
        skopeo.copy(f"docker://{registry.host}/app:v1", f"oci:{place}:v1")
    assert read_image(remote, place, ":v1") == read_image(remote, place, "") == set(INDEX.descriptors)
    other = images.image(2102)
    publish(remote.open_target(layout(place)), other, "v2")
    assert list(remote.open_source(layout(place)).tags()) == ["v1", "v2"]
    assert [skopeo.raw(f"oci:{place}:{tag}") for tag in ("v1", "v2")] == [INDEX.manifests[-1].raw, other.manifests[-1].raw]


def test_skopeo_extends_a_written_layout(remote: LayoutRemote, tmp_path: Path) -> None:
    place = tmp_path / "layout"
    publish(remote.open_target(layout(place)), INDEX, "v1")
    skopeo.copy(f"oci:{place}:v1", f"oci:{place}:again")
    assert names_in(place) == {"v1": INDEX.root.digest, "again": INDEX.root.digest}
    assert remote.open_target(layout(place)).has(root_of(INDEX), tag="again") is True


def test_umoci_lists_and_unpacks_a_written_layout(remote: LayoutRemote, tmp_path: Path) -> None:
    place = tmp_path / "layout"
    target = remote.open_target(layout(place))
    publish(target, AMD, "v1")
    publish(target, images.image(2103), "v2")
    assert umoci("list", "--layout", place).split() == ["v1", "v2"]
    umoci("unpack", "--rootless", "--image", f"{place}:v1", tmp_path / "bundle")
    files = [path for path in (tmp_path / "bundle" / "rootfs").rglob("*") if path.is_file()]
    assert len(files) == 2
    assert all(path.stat().st_size == 1000 for path in files)


def test_a_layout_of_umoci_is_read_and_extended(remote: LayoutRemote, tmp_path: Path) -> None:
    place, file = tmp_path / "layout", tmp_path / "file"
    file.write_bytes(b"content")
    umoci("init", "--layout", place)
    assert list(remote.open_source(layout(place)).tags()) == []
    umoci("new", "--image", f"{place}:v1")
    umoci("insert", "--rootless", "--image", f"{place}:v1", file, "/file")
    found = read_image(remote, place, ":v1")
    assert len(found) == 3
    assert found == {f"sha256:{path.name}" for path in (place / "blobs/sha256").iterdir()} & found
    publish(remote.open_target(layout(place)), AMD, "v2")
    assert umoci("list", "--layout", place).split() == ["v1", "v2"]
    umoci("gc", "--layout", place)
    assert read_image(remote, place, ":v1") == found
    assert read_image(remote, place, ":v2") == set(AMD.descriptors)


def test_the_garbage_collection_of_umoci_keeps_listed_referrers(remote: LayoutRemote, tmp_path: Path) -> None:
    place, bill = tmp_path / "layout", images.artifact(2104, subject=AMD)
    target = remote.open_target(layout(place))
    publish(target, AMD, "v1")
    for digest, data in bill.blobs.items():
        upload(target, data, Descriptor(media_type="application/x", digest=Digest.parse(digest), size=len(data)))
    raw = bill.manifests[-1].raw
    target.put(raw, root_of(bill))
    target.list_referrer(Digest.parse(AMD.root.digest), make_entry(raw, root_of(bill), at="test"))
    umoci("gc", "--layout", place)
    [found] = remote.open_source(layout(place)).referrers(root_of(AMD))
    assert str(found.digest) == bill.root.digest
    assert fetch(remote.open_source(layout(place)), found) == raw
