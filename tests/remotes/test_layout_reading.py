"""Reading images from a layout: tags, digests, damaged indexes and blobs, resumption and cancellation."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefect_dist.ocispec import Digest, manifest
from prefect_dist.ocispec.errors import Corrupt, DistError, InvalidInput, NotFound, Unavailable, Unsupported
from prefect_dist.remotes.layout_remote import LayoutRemote
from prefect_dist.storage import open_store
from prefect_dist.transfer import content
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.events import ContentAdvanced, Event
from tests import images
from tests.remotes.layouts import (
    MARKER,
    REF_NAME,
    blob,
    blob_file,
    entry,
    fetch,
    layout,
    open_layouts,
    root_of,
    write_blobs,
    write_index,
    write_layout,
)

ONE, TWO = images.image(1600), images.image(1601)
CONTAINERD = "io.containerd.image.name"


@pytest.fixture
def remote() -> Iterator[LayoutRemote]:
    with open_layouts() as remote:
        yield remote


def resolve(remote: LayoutRemote, place: Path, tail: str = "") -> str:
    return str(remote.resolve(layout(place, tail)).descriptor.digest)


def error_of(remote: LayoutRemote, place: Path, tail: str = "") -> str:
    with pytest.raises(DistError) as caught:
        remote.resolve(layout(place, tail))
    return f"{type(caught.value).__name__}: {caught.value}"


# Names


def test_a_tag_a_digest_and_a_tag_with_a_digest_lead_to_their_images(remote: LayoutRemote, tmp_path: Path) -> None:
    write_layout(tmp_path, {"v1": ONE, "v2": TWO})
    assert resolve(remote, tmp_path, ":v1") == ONE.root.digest
    assert resolve(remote, tmp_path, f"@{TWO.root.digest}") == TWO.root.digest
    assert resolve(remote, tmp_path, f":v1@{TWO.root.digest}") == TWO.root.digest
    assert remote.resolve(layout(tmp_path, ":v1")).descriptor == root_of(ONE)
    assert list(remote.open_source(layout(tmp_path)).tags()) == ["v1", "v2"]


def test_a_digest_outside_the_index_gets_the_type_of_its_content(remote: LayoutRemote, tmp_path: Path) -> None:
    index = images.index([ONE, TWO])
    write_layout(tmp_path, {"v1": index})
    assert remote.resolve(layout(tmp_path, f"@{ONE.root.digest}")).descriptor == root_of(ONE)
    layer = next(iter(ONE.blobs))
    assert remote.resolve(layout(tmp_path, f"@{layer}")).descriptor.media_type == "application/octet-stream"
    hinted = remote.resolve(layout(tmp_path, f"@{layer}"), media_type="application/x").descriptor
    assert (hinted.media_type, hinted.size) == ("application/x", len(ONE.blobs[layer]))


def test_the_only_image_needs_no_name(remote: LayoutRemote, tmp_path: Path) -> None:
    write_layout(tmp_path, {"v1": ONE})
    assert resolve(remote, tmp_path) == ONE.root.digest
    write_layout(tmp_path, {"v1": ONE, "latest": ONE})
    assert resolve(remote, tmp_path) == ONE.root.digest


def test_referrers_are_no_images_of_their_own(remote: LayoutRemote, tmp_path: Path) -> None:
    listed, signature = images.artifact(1602, subject=ONE), images.artifact(1603)
    encoded = ONE.root.digest.replace(":", "-")
    write_layout(tmp_path, {"v1": ONE, encoded: images.index([listed]), f"{encoded}.sig": signature}, listed)
    assert resolve(remote, tmp_path) == ONE.root.digest


def test_several_images_need_a_name(remote: LayoutRemote, tmp_path: Path) -> None:
    write_layout(tmp_path, {"v1": ONE}, TWO)
    expected = f"expected a tag or digest, the layout has several images: v1, @{TWO.root.digest}"
    assert error_of(remote, tmp_path) == f"InvalidInput: oci:{tmp_path}: {expected}"


def test_the_tag_of_a_full_name_leads_to_its_image(remote: LayoutRemote, tmp_path: Path) -> None:
    write_blobs(tmp_path, ONE, TWO)
    write_index(
        tmp_path,
        entry(ONE, {REF_NAME: "docker.io/library/redis:7"}),
        entry(TWO, {CONTAINERD: "docker.io/library/nginx:1", REF_NAME: "1"}),
        entry(TWO, {CONTAINERD: "docker.io/library/nginx:2"}),
        entry(TWO, {REF_NAME: "registry.example:5000/without/tag"}),
    )
    assert [resolve(remote, tmp_path, f":{tag}") for tag in "712"] == [ONE.root.digest, TWO.root.digest, TWO.root.digest]
    assert list(remote.open_source(layout(tmp_path)).tags()) == ["7", "1", "2"]
    assert list(remote.open_origin(layout(tmp_path)).tags()) == ["1"]  # a target has exact names only


def test_an_exact_name_precedes_the_tag_of_a_full_name(remote: LayoutRemote, tmp_path: Path) -> None:
    write_layout(tmp_path, {"docker.io/library/redis:7": ONE, "7": TWO})
    assert resolve(remote, tmp_path, ":7") == TWO.root.digest


def test_an_ambiguous_tag_is_refused_and_not_listed(remote: LayoutRemote, tmp_path: Path) -> None:
    write_layout(tmp_path, {"docker.io/library/redis:7": ONE, "ghcr.io/x/\x1b[31mred:7": TWO, "v1": ONE})
    said = error_of(remote, tmp_path, ":7")
    assert "tag 7: expected one image, got 'docker.io/library/redis:7'" in said
    assert said.isprintable()
    assert list(remote.open_source(layout(tmp_path)).tags()) == ["v1"]


def test_duplicate_entries_of_one_image_are_one_image(remote: LayoutRemote, tmp_path: Path) -> None:
    write_blobs(tmp_path, ONE)
    write_index(tmp_path, entry(ONE, {REF_NAME: "v1"}), entry(ONE, {REF_NAME: "v1"}), entry(ONE))
    assert resolve(remote, tmp_path, ":v1") == resolve(remote, tmp_path) == ONE.root.digest


def test_a_missing_tag_is_named(remote: LayoutRemote, tmp_path: Path) -> None:
    write_layout(tmp_path, {"v1": ONE})
    remedy = f"the layout has no image with this tag; dist tags oci:{tmp_path} lists the tags"
    assert error_of(remote, tmp_path, ":v2") == f"NotFound: oci:{tmp_path}:v2: {remedy}"


@pytest.mark.timeout(10)  # a search of all names for each name would take longer
def test_tens_of_thousands_of_names_are_listed_quickly(remote: LayoutRemote, tmp_path: Path) -> None:
    digest, media_type, size = ONE.root
    short = {"mediaType": media_type, "digest": digest, "size": size}
    write_index(tmp_path, *({**short, "annotations": {REF_NAME: f"t{number}"}} for number in range(15_000)))
    assert len(list(remote.open_source(layout(tmp_path)).tags())) == 15_000


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("ftp://host/x", "oci:ftp://host/x: ftp:// does not guarantee that a file appears whole or not at all; use one of"),
        ("/a::b", "oci:/a::b: a location with :: is not supported"),
        ("~nobody-at-all/x", "oci:~nobody-at-all/x: expected an absolute path"),
    ],
)
def test_an_unusable_location_is_refused(remote: LayoutRemote, place: str, message: str) -> None:
    with pytest.raises(DistError) as caught:
        remote.resolve(layout(place, ":v1"))
    assert str(caught.value).startswith(message)


# Damaged layouts


def test_a_missing_layout_is_no_image_layout(remote: LayoutRemote, tmp_path: Path) -> None:
    assert error_of(remote, tmp_path).endswith("no image layout found; check the location (index.json: not found)")
    write_blobs(tmp_path, ONE)
    (tmp_path / "oci-layout").write_text(MARKER)
    assert error_of(remote, tmp_path, ":v1").startswith(f"NotFound: oci:{tmp_path}: no image layout found")
    assert remote.open_source(layout(tmp_path)).exists() is False
    write_index(tmp_path, entry(ONE))
    assert resolve(remote, tmp_path) == ONE.root.digest
    assert remote.open_source(layout(tmp_path)).exists() is True


def test_a_layout_without_a_marker_is_read(remote: LayoutRemote, tmp_path: Path) -> None:
    write_layout(tmp_path, {"v1": ONE})
    (tmp_path / "oci-layout").unlink()
    assert resolve(remote, tmp_path, ":v1") == ONE.root.digest


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        (
            '{"imageLayoutVersion":"2.0.0", "x": "1.0.0"}',
            "expected an image layout of version 1.0.0, its file oci-layout has '2.0.0'",
        ),
        ("{}", "oci-layout.imageLayoutVersion: missing"),
        ("1.0.0", "oci-layout: not JSON"),
    ],
)
def test_another_version_is_refused(remote: LayoutRemote, tmp_path: Path, marker: str, message: str) -> None:
    write_layout(tmp_path, {"v1": ONE})
    (tmp_path / "oci-layout").write_text(marker)
    assert message in error_of(remote, tmp_path, ":v1")


def test_an_index_of_another_version_of_this_process_is_read_again(remote: LayoutRemote, tmp_path: Path) -> None:
    write_layout(tmp_path, {"v1": ONE})
    assert resolve(remote, tmp_path, ":v1") == ONE.root.digest
    write_layout(tmp_path, {"v1": TWO})
    assert resolve(remote, tmp_path, ":v1") == TWO.root.digest


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"", "index.json: not JSON"),
        (b"{", "index.json: not JSON"),
        (b"[]", "index.json: expected a JSON object, got a list"),
        (b'{"manifests":{}}', "index.json.manifests: expected a list, got an object"),
        (b'{"manifests":[1]}', "index.json.manifests[0]: expected an object, got an integer"),
        (b'{"manifests":[{"mediaType":"m","size":1}]}', "index.json.manifests[0].digest: missing"),
        (b'{"manifests":[{"mediaType":"m","size":1,"digest":"sha256:../../../../etc/passwd"}]}', "expected algorithm:hex"),
        (b'{"manifests":[{"mediaType":"m","size":1,"digest":"../x:aa"}]}', "expected algorithm:hex"),
        (b'{"manifests":[{"mediaType":"m","size":-1,"digest":"sha256:%b"}]}' % (b"a" * 64), "manifests[0].size: expected 0 to"),
        (b'{"manifests":[{"mediaType":"m","size":1,"digest":"sha256:%b"}]}' % (b"A" * 64), "expected 64 characters"),
        (b'{"manifests":[{"mediaType":"m","size":1,"digest":"blake3:%b"}]}' % (b"a" * 64), "algorithm blake3 is not supported"),
        (b"[" * 100_000, "index.json: not JSON"),
        (b'{"manifests":' + b"[" * 2000 + b"]" * 2000 + b"}", "index.json: not JSON"),
    ],
)
def test_an_invalid_index_is_refused(remote: LayoutRemote, tmp_path: Path, index: bytes, message: str) -> None:
    (tmp_path / "index.json").write_bytes(index)
    said = error_of(remote, tmp_path, ":v1")
    assert message in said
    assert f"oci:{tmp_path}" in said
    assert said.isprintable()


def test_an_oversized_index_is_not_read(remote: LayoutRemote, tmp_path: Path) -> None:
    with (tmp_path / "index.json").open("wb") as file:
        file.truncate(1 << 40)  # sparse
    expected = f"index.json: expected at most {manifest.MAX_BYTES} bytes, got {1 << 40}"
    assert error_of(remote, tmp_path, ":v1") == f"Unsupported: oci:{tmp_path}: {expected}"


@pytest.mark.parametrize("name", ["index.json", "oci-layout"])
def test_a_pipe_or_directory_in_place_of_a_document_is_refused(remote: LayoutRemote, tmp_path: Path, name: str) -> None:
    write_layout(tmp_path, {"v1": ONE})
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    assert "expected a file, got other" in error_of(remote, tmp_path, ":v1")
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert "expected a file, got directory" in error_of(remote, tmp_path, ":v1")


def test_an_entry_of_another_size_or_digest_fails_the_content(remote: LayoutRemote, tmp_path: Path) -> None:
    write_layout(tmp_path, {"v1": ONE})
    digest, media_type, size = ONE.root
    write_index(
        tmp_path,
        {"mediaType": media_type, "digest": digest, "size": size + 1, "annotations": {REF_NAME: "longer"}},
        {"mediaType": media_type, "digest": images.digest_of(b"none"), "size": size, "annotations": {REF_NAME: "none"}},
    )
    source = remote.open_source(layout(tmp_path))
    longer = source.resolve(layout(tmp_path, ":longer"))
    with pytest.raises(Corrupt, match=f"expected {size + 1} bytes, oci:{tmp_path} has {size}"):
        fetch(source, longer)
    with pytest.raises(NotFound, match=f"oci:{tmp_path}: blob {images.digest_of(b'none')}: not found"):
        fetch(source, source.resolve(layout(tmp_path, ":none")))


# Blobs

DATA = bytes(range(256)) * 20_000  # two pieces


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("offset", [0, 1, 1_048_576, len(DATA) - 1, len(DATA)])
def test_a_blob_is_read_from_any_offset(remote: LayoutRemote, tmp_path: Path, offset: int, algorithm: str) -> None:
    write_layout(tmp_path, {})
    described = blob(DATA, algorithm=algorithm)
    blob_file(tmp_path, described.digest).parent.mkdir(parents=True, exist_ok=True)
    blob_file(tmp_path, described.digest).write_bytes(DATA)
    assert fetch(remote.open_source(layout(tmp_path)), described, offset=offset) == DATA[offset:]


@pytest.mark.parametrize("data", [DATA[:-1], DATA + b"x", b""])
def test_a_blob_of_another_size_is_corrupt(remote: LayoutRemote, tmp_path: Path, data: bytes) -> None:
    described = blob(DATA)
    blob_file(tmp_path, described.digest).parent.mkdir(parents=True)
    blob_file(tmp_path, described.digest).write_bytes(data)
    with pytest.raises(
        Corrupt, match=f"^layer {described.digest}: expected {len(DATA)} bytes, oci:{tmp_path} has {len(data)}$"
    ):
        fetch(remote.open_source(layout(tmp_path)), described)


def test_a_blob_that_shrinks_while_it_is_read_is_corrupt(remote: LayoutRemote, tmp_path: Path) -> None:
    described = blob(DATA)
    blob_file(tmp_path, described.digest).parent.mkdir(parents=True)
    blob_file(tmp_path, described.digest).write_bytes(DATA)
    pieces = remote.open_source(layout(tmp_path)).fetch(described)
    first = next(pieces)
    os.truncate(blob_file(tmp_path, described.digest), len(first) + 5)
    with pytest.raises(Corrupt, match=f"oci:{tmp_path} has {len(first) + 5}"):
        list(pieces)


def test_a_blob_that_grows_while_it_is_read_is_corrupt(remote: LayoutRemote, tmp_path: Path) -> None:
    described = blob(DATA)
    path = blob_file(tmp_path, described.digest)
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    pieces = remote.open_source(layout(tmp_path)).fetch(described)
    next(pieces)
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(Corrupt, match="has more"):
        list(pieces)


def test_a_blob_that_is_replaced_while_it_is_read_is_read_from_one_file(remote: LayoutRemote, tmp_path: Path) -> None:
    described = blob(DATA)
    path = blob_file(tmp_path, described.digest)
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    pieces = remote.open_source(layout(tmp_path)).fetch(described)
    read = next(pieces)
    (tmp_path / "other").write_bytes(bytes(len(DATA)))
    (tmp_path / "other").replace(path)
    assert read + b"".join(pieces) == DATA


def test_a_pipe_in_place_of_a_blob_is_refused(remote: LayoutRemote, tmp_path: Path) -> None:
    described = blob(b"")
    blob_file(tmp_path, described.digest).parent.mkdir(parents=True)
    os.mkfifo(blob_file(tmp_path, described.digest))
    with pytest.raises(InvalidInput, match="expected a file, got other"):
        fetch(remote.open_source(layout(tmp_path)), described)


def test_abort_ends_the_transfer_in_flight_and_refuses_later_ones(remote: LayoutRemote, tmp_path: Path) -> None:
    described = blob(DATA)
    blob_file(tmp_path, described.digest).parent.mkdir(parents=True)
    blob_file(tmp_path, described.digest).write_bytes(DATA)
    source = remote.open_source(layout(tmp_path))
    pieces = source.fetch(described)
    next(pieces)
    remote.abort()
    with pytest.raises(Unavailable, match=f"reading oci:{tmp_path} was aborted"):
        next(pieces)
    with pytest.raises(Unavailable, match="was aborted"):
        fetch(source, described)
    other = tmp_path / "other"
    write_layout(other, {"v1": ONE})
    with pytest.raises(Unavailable, match="was aborted"):
        fetch(remote.open_source(layout(other)), root_of(ONE))


def test_a_fetch_that_was_cut_resumes_at_its_offset(tmp_path: Path) -> None:
    described = blob(DATA)
    blob_file(tmp_path / "layout", described.digest).parent.mkdir(parents=True)
    blob_file(tmp_path / "layout", described.digest).write_bytes(DATA)

    def fetch_to_store(notify: Callable[[Event], None], remote: LayoutRemote) -> Receipt:
        source = remote.open_source(layout(tmp_path / "layout"))
        with open_store(str(tmp_path / "store")) as store:
            return content.fetch(store, source, described, notify=notify, pause=lambda _: None)

    with open_layouts() as first:

        def abort(event: Event) -> None:
            if isinstance(event, ContentAdvanced) and event.gained:
                first.abort()

        with pytest.raises(Unavailable, match="was aborted"):
            fetch_to_store(abort, first)
    offsets = list[int]()
    with open_layouts() as second:
        receipt = fetch_to_store(lambda event: offsets.append(getattr(event, "offset", -1)), second)
    assert offsets[0] == 4 * 1024 * 1024
    assert receipt.transferred == len(DATA) - offsets[0]


# Referrers


def test_referrers_of_fallback_tags_and_of_entries_are_listed_once(remote: LayoutRemote, tmp_path: Path) -> None:
    both, only_tag, only_entry, tagged, other = (
        images.artifact(seed, subject=about, artifact_type=kind)
        for seed, about, kind in (
            (1610, ONE, "a/b"),
            (1611, ONE, "a/b"),
            (1612, ONE, "c/d"),
            (1613, TWO, "a/b"),
            (1614, TWO, "a/b"),
        )
    )
    fallback = ONE.root.digest.replace(":", "-")
    write_layout(tmp_path, {"v1": ONE, fallback: images.index([both, only_tag]), "art": tagged}, both, only_entry, other, TWO)
    source = remote.open_source(layout(tmp_path))
    found = [str(one.digest) for one in source.referrers(root_of(ONE))]
    assert found == [one.root.digest for one in (both, only_tag, only_entry)]
    assert [str(one.digest) for one in source.referrers(root_of(ONE), artifact_type="c/d")] == [only_entry.root.digest]
    assert [str(one.digest) for one in source.referrers(root_of(TWO))] == [other.root.digest]
    [listed] = source.referrers(root_of(ONE), artifact_type="c/d")
    assert (listed.artifact_type, listed.size) == ("c/d", only_entry.root.size)


def test_an_unreadable_entry_does_not_hide_the_referrers_of_others(remote: LayoutRemote, tmp_path: Path) -> None:
    good, missing, flipped = (images.artifact(seed, subject=ONE) for seed in (1620, 1621, 1622))
    write_layout(tmp_path, {"v1": ONE}, missing, flipped, good)
    blob_file(tmp_path, missing.root.digest).unlink()
    path = blob_file(tmp_path, flipped.root.digest)
    path.write_bytes(path.read_bytes().replace(b"a", b"b"))
    assert [str(one.digest) for one in remote.open_source(layout(tmp_path)).referrers(root_of(ONE))] == [good.root.digest]


def test_other_content_under_a_fallback_tag_is_refused(remote: LayoutRemote, tmp_path: Path) -> None:
    fallback = ONE.root.digest.replace(":", "-")
    write_layout(tmp_path, {"v1": ONE, fallback: TWO})
    with pytest.raises(Unsupported, match=f"oci:{tmp_path}:{fallback}: expected an OCI index of referrers"):
        list(remote.open_source(layout(tmp_path)).referrers(root_of(ONE)))


def test_digest_tags_of_cosign_are_found(remote: LayoutRemote, tmp_path: Path) -> None:
    encoded = ONE.root.digest.replace(":", "-")
    signature, attestation = images.artifact(1630), images.artifact(1631)
    write_layout(tmp_path, {"v1": ONE, f"{encoded}.sig": signature, f"{encoded}.att": attestation})
    source = remote.open_source(layout(tmp_path))
    assert [(tag, str(one.digest)) for tag, one in source.signatures(root_of(ONE))] == [
        (f"{encoded}.sig", signature.root.digest),
        (f"{encoded}.att", attestation.root.digest),
    ]
    assert [tag for tag, _ in source.signatures(root_of(ONE), tags={f"{encoded}.att"})] == [f"{encoded}.att"]


def test_a_digest_of_sha512_is_resolved_and_read(remote: LayoutRemote, tmp_path: Path) -> None:
    raw = ONE.manifests[-1].raw
    digest = Digest.of(raw, algorithm="sha512")
    write_layout(tmp_path, {"v1": ONE})
    (tmp_path / "blobs/sha512").mkdir()
    blob_file(tmp_path, digest).write_bytes(raw)
    described = remote.resolve(layout(tmp_path, f"@{digest}")).descriptor
    assert (described.media_type, described.size) == (images.OCI_MANIFEST, len(raw))
    assert json.loads(fetch(remote.open_source(layout(tmp_path)), described)) == json.loads(raw)


def test_a_digest_whose_blob_has_other_bytes_is_corrupt(remote: LayoutRemote, tmp_path: Path) -> None:
    write_layout(tmp_path, {"v1": ONE})
    write_index(tmp_path)
    path = blob_file(tmp_path, ONE.root.digest)
    path.write_bytes(path.read_bytes().replace(b"layers", b"Layers"))
    said = error_of(remote, tmp_path, f"@{ONE.root.digest}")
    assert f"expected {ONE.root.digest}, oci:{tmp_path} has sha256:" in said
