"""The selection of an image to unpack, its verification, and the appearance of the directory."""

import gzip
import hashlib
import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard

from prefect_dist.ocispec import Descriptor, Digest, Platform
from prefect_dist.ocispec.errors import Corrupt, InvalidInput, NotFound, Unsupported
from prefect_dist.storage import ContentStore, StoreFull, open_store
from prefect_dist.storage.unpack import image as image_module
from prefect_dist.storage.unpack import unpack
from prefect_dist.storage.unpack.tree import sync
from tests import images
from tests.storage.conformance import Place, blob_path, noise
from tests.storage.layered import (
    AMD64,
    COMPRESS,
    OCI_LAYER,
    add_content,
    as_nobody,
    device,
    directory,
    file,
    image,
    index,
    link,
    manifest,
    symlink,
    tar,
    tree,
    whiteout,
)

ARM64 = Platform.parse("linux/arm64")
DOCKER = "application/vnd.docker.image.rootfs.diff.tar"
ONE = tar(file("x", b"one", mtime=1))


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return the parent of the target directory. It must be empty after any error."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def config(*diff_ids: object, **fields: object) -> dict[str, object]:
    return {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [*map(str, diff_ids)]}, **fields}


def single(store: ContentStore, blob: bytes, media_type: str, *, diff_id: Digest, **fields: object) -> Descriptor:
    """Return an image of one layer, with an arbitrary diff ID."""
    return manifest(store, config(diff_id), [add_content(store, blob, media_type, **fields)])


def refusal_message(
    store: ContentStore, root: Descriptor, place: Path, error: type[Exception], *, platform: Platform = AMD64
) -> str:
    with pytest.raises(error) as caught:
        unpack(store, root, place / "rootfs", platform=platform)
    assert list(place.iterdir()) == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Results


def test_the_result_has_manifest_config_and_chain_id(store: ContentStore, place: Path) -> None:
    layers = [ONE, tar(file("y")), tar()]
    root = image(store, *layers)
    done = unpack(store, root, place / "rootfs", platform=AMD64)
    first, second, third = (f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers)
    chain = f"sha256:{hashlib.sha256(f'{first} {second}'.encode()).hexdigest()}"
    chain = f"sha256:{hashlib.sha256(f'{chain} {third}'.encode()).hexdigest()}"
    document = json.loads(store.manifest(root))
    assert (done.manifest, str(done.config), done.layers) == (root, document["config"]["digest"], 3)
    assert str(done.chain_id) == chain
    assert done.directory == place / "rootfs"


def test_the_chain_id_of_one_layer_is_its_diff_id(store: ContentStore, place: Path) -> None:
    assert unpack(store, image(store, ONE), place / "rootfs", platform=AMD64).chain_id == Digest.of(ONE)


def test_an_image_without_layers_unpacks_to_an_empty_directory(store: ContentStore, place: Path) -> None:
    done = unpack(store, image(store), place / "rootfs", platform=AMD64)
    assert (done.layers, done.chain_id, list((place / "rootfs").iterdir())) == (0, None, [])


@pytest.mark.parametrize("base", [OCI_LAYER, OCI_LAYER.replace("layer", "layer.nondistributable"), DOCKER])
@pytest.mark.parametrize("suffix", COMPRESS)
def test_the_media_type_selects_the_decompressor(store: ContentStore, place: Path, base: str, suffix: str) -> None:
    media_type = base + (suffix.replace("+", ".") if base == DOCKER else suffix)
    unpack(store, single(store, COMPRESS[suffix](ONE), media_type, diff_id=Digest.of(ONE)), place / "rootfs", platform=AMD64)
    assert (place / "rootfs/x").read_bytes() == b"one"


PIECES = [ONE[:100], ONE[100:1000], b"", ONE[1000:]]
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"
STREAMS = {
    "several gzip members": ("+gzip", b"".join(gzip.compress(piece) for piece in PIECES)),
    "gzip padded with zeros": ("+gzip", gzip.compress(ONE) + bytes(1000)),
    "several zstd frames": ("+zstd", b"".join(zstandard.compress(piece) for piece in PIECES)),
    "skippable zstd frames": ("+zstd", SKIPPABLE + zstandard.compress(ONE[:100]) + SKIPPABLE + zstandard.compress(ONE[100:])),
    "zstd of unknown size": ("+zstd", zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compress(ONE)),
}


@pytest.mark.parametrize(("suffix", "blob"), STREAMS.values(), ids=STREAMS)
def test_a_compressed_layer_may_have_several_members(store: ContentStore, place: Path, suffix: str, blob: bytes) -> None:
    unpack(store, single(store, blob, OCI_LAYER + suffix, diff_id=Digest.of(ONE)), place / "rootfs", platform=AMD64)
    assert (place / "rootfs/x").read_bytes() == b"one"


@pytest.mark.parametrize("suffix", COMPRESS)
def test_an_empty_stream_is_an_empty_layer(store: ContentStore, place: Path, suffix: str) -> None:
    unpack(store, single(store, b"", OCI_LAYER + suffix, diff_id=Digest.of(b"")), place / "rootfs", platform=AMD64)
    assert list((place / "rootfs").iterdir()) == []


@pytest.mark.parametrize("end", [b"", bytes(512), bytes(1024), bytes(10240) + b"junk"])
def test_an_archive_may_have_any_end_after_its_last_entry(store: ContentStore, place: Path, end: bytes) -> None:
    archive = ONE[:1024] + end
    unpack(store, image(store, archive), place / "rootfs", platform=AMD64)
    assert (place / "rootfs/x").read_bytes() == b"one"


@pytest.mark.parametrize("docker", [False, True])
def test_an_index_in_either_format_is_unpacked(store: ContentStore, place: Path, *, docker: bool) -> None:
    built = images.index([images.image(1, docker=docker)], docker=docker)
    for data in (*built.blobs.values(), *(document.raw for document in built.manifests)):
        add_content(store, data, images.OCI_CONFIG)
    digest, media_type, size = built.root
    root = Descriptor(media_type=media_type, digest=Digest.parse(digest), size=size)
    assert unpack(store, root, place / "rootfs", platform=AMD64).layers == 3
    assert len(list((place / "rootfs/data/1").iterdir())) == 3


def test_diff_ids_may_be_sha512(store: ContentStore, place: Path) -> None:
    root = single(store, ONE, OCI_LAYER, diff_id=Digest.of(ONE, algorithm="sha512"))
    assert str(unpack(store, root, place / "rootfs", platform=AMD64).chain_id).startswith("sha512:")


def test_parents_without_an_entry_always_get_the_same_attributes(store: ContentStore, place: Path) -> None:
    unpack(store, image(store, tar(file("a/b/c", mtime=1))), place / "rootfs", platform=AMD64)
    found = tree(place / "rootfs")
    assert {name: (oct(found[name].mode & 0o7777), found[name].mtime_ns) for name in (".", "a", "a/b")} == dict.fromkeys(
        (".", "a", "a/b"), ("0o755", 0)
    )


def test_aufs_metadata_is_left_out(store: ContentStore, place: Path) -> None:
    members = [directory(".wh..wh.plnk/"), file(".wh..wh.plnk/1.2"), file("d/.wh..wh.aufs"), file("x")]
    unpack(store, image(store, tar(*members)), place / "rootfs", platform=AMD64)
    assert set(tree(place / "rootfs")) == {".", "x"}


def old_directory(magic: bytes) -> bytes:
    """Return a directory as in the oldest tar format: a regular file whose name ends with a slash."""
    info = tarfile.TarInfo("foo")
    info.type, info.mode = tarfile.AREGTYPE, 0o755
    raw = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    raw[:4], raw[257:265], raw[148:156] = b"foo/", magic, b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


@pytest.mark.parametrize("magic", [bytes(8), b"ustar\x0000", b"ustar  \0"], ids=["v7", "ustar", "gnu"])
def test_directories_in_the_old_tar_format_are_recognised(store: ContentStore, place: Path, magic: bytes) -> None:
    unpack(store, image(store, old_directory(magic) + tar(file("foo/x", b"x"))), place, platform=AMD64)
    assert (place / "foo/x").read_bytes() == b"x"


def test_the_times_in_gnu_headers_are_not_parsed_as_names(store: ContentStore, place: Path) -> None:
    raw = bytearray(tar(file("x"), layout=tarfile.GNU_FORMAT))
    raw[345:357], raw[148:156] = b"14371741000\0", b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    unpack(store, image(store, bytes(raw)), place / "rootfs", platform=AMD64)
    assert set(tree(place / "rootfs")) == {".", "x"}


@pytest.mark.parametrize(
    "form", ["gnu", "posix --sparse-version=0.0", "posix --sparse-version=0.1", "posix --sparse-version=1.0"]
)
def test_sparse_files_of_gnu_tar_keep_content_and_holes(store: ContentStore, tmp_path: Path, place: Path, form: str) -> None:
    with (tmp_path / "sparse").open("wb") as out:
        for number in range(30):  # more than the map of a header can hold
            out.seek(number * 1_000_000)
            out.write(noise(5000, seed=number))
        out.truncate(50_000_000)
    archive = subprocess.run(
        ["tar", "--sparse", *f"--format={form}".split(), "-C", tmp_path, "-c", "sparse"], capture_output=True, check=True
    ).stdout
    assert len(archive) < 1_000_000
    unpack(store, image(store, archive, tar(file("after"))), place / "rootfs", platform=AMD64)
    assert (place / "rootfs/sparse").read_bytes() == (tmp_path / "sparse").read_bytes()
    assert (place / "rootfs/sparse").stat().st_blocks * 512 < 1_000_000


# Selection


def test_the_image_for_the_platform_is_selected_from_an_index(store: ContentStore, place: Path) -> None:
    mine = image(store, tar(file("arm")), architecture="arm64", platform=ARM64)
    root = index(store, image(store, ONE, platform=AMD64), mine)
    assert unpack(store, root, place / "rootfs", platform=ARM64).manifest == mine
    assert (place / "rootfs/arm").exists()


def test_nested_indexes_are_searched_as_one(store: ContentStore, place: Path) -> None:
    old = image(store, ONE, platform=Platform.parse("linux/arm/v6"))
    new = image(store, tar(file("new")), platform=Platform.parse("linux/arm/v7"))
    root = index(store, index(store, index(store, old)), index(store, index(store, new)))
    assert unpack(store, root, place / "rootfs", platform=Platform.parse("linux/arm/v8")).manifest == new


def test_nested_indexes_for_other_platforms_may_be_missing(store: ContentStore, place: Path) -> None:
    absent = Descriptor(media_type=images.OCI_INDEX, digest=Digest.of(b"absent"), size=6, platform=ARM64)
    root = index(store, absent, image(store, ONE, platform=AMD64))
    assert unpack(store, root, place / "rootfs", platform=AMD64).layers == 1


def test_an_index_that_is_listed_many_times_is_read_once(store: ContentStore, place: Path) -> None:
    root = image(store, ONE, platform=AMD64)
    for _ in range(60):
        root = index(store, root, root)
    assert unpack(store, root, place / "rootfs", platform=AMD64).layers == 1


def test_the_platform_of_a_manifest_may_come_from_its_config(store: ContentStore, place: Path) -> None:
    mine = image(store, tar(file("arm")), architecture="arm64")
    root = index(store, image(store, ONE), mine)
    assert unpack(store, root, place / "rootfs", platform=ARM64).manifest.digest == mine.digest


def test_the_error_of_a_missing_platform_lists_the_available_platforms(store: ContentStore, place: Path) -> None:
    root = index(store, image(store, ONE, platform=AMD64), index(store, image(store, tar(), platform=ARM64)))
    message = refusal_message(store, root, place, NotFound, platform=Platform.parse("windows/amd64"))
    assert message == f"{root}: no image for windows/amd64; the index has linux/amd64, linux/arm64"


@pytest.mark.parametrize("wanted", ["unknown/unknown", "linux/amd64"])
def test_attestations_are_never_selected(store: ContentStore, place: Path, wanted: str) -> None:
    attestation = image(store, ONE, platform=Platform(os="unknown", architecture="unknown"))
    assert "the index has no image" in refusal_message(
        store, index(store, attestation), place, NotFound, platform=Platform.parse(wanted)
    )


def test_artifacts_in_an_index_are_skipped(store: ContentStore, place: Path) -> None:
    artifact = add_content(store, images.artifact(1).manifests[0].raw, images.OCI_MANIFEST)
    add_content(store, b"{}", images.OCI_EMPTY)
    root = index(store, artifact, image(store, ONE))
    assert unpack(store, root, place / "rootfs", platform=AMD64).layers == 1


def test_an_artifact_is_refused_with_its_media_type(store: ContentStore, place: Path) -> None:
    artifact = add_content(store, images.artifact(1).manifests[0].raw, images.OCI_MANIFEST)
    assert f"an artifact with a config of type {images.OCI_EMPTY}" in refusal_message(store, artifact, place, Unsupported)


@pytest.mark.parametrize("media_type", [images.OCI_CONFIG, images.OCI_LAYER, "application/vnd.oci.artifact.manifest.v1+json"])
def test_other_content_than_an_image_is_refused_with_its_media_type(store: ContentStore, place: Path, media_type: str) -> None:
    assert media_type in refusal_message(store, add_content(store, b"{}", media_type), place, Unsupported)


# Refusals before anything is written


@pytest.mark.parametrize(
    "media_type",
    [f"{OCI_LAYER}+encrypted", f"{OCI_LAYER}+gzip+encrypted", f"{OCI_LAYER}+xz", f"{OCI_LAYER}.xz", "application/octet-stream"],
)
def test_other_types_of_layers_are_refused_with_their_media_type(store: ContentStore, place: Path, media_type: str) -> None:
    assert f"got the type {media_type}" in refusal_message(
        store, single(store, ONE, media_type, diff_id=Digest.of(ONE)), place, Unsupported
    )


@pytest.mark.parametrize(
    "media_type",
    [f"{OCI_LAYER.replace('layer', 'layer.nondistributable')}+gzip", DOCKER.replace("diff", "foreign.diff.tar.gzip")[:-4]],
)
def test_a_non_distributable_layer_without_content_is_refused_with_its_media_type(
    store: ContentStore, place: Path, media_type: str
) -> None:
    root = single(store, ONE, media_type, diff_id=Digest.of(ONE))
    store.delete(Digest.of(ONE))
    assert f"a non-distributable layer ({media_type})" in refusal_message(store, root, place, Unsupported)


def parts(store: ContentStore, root: Descriptor) -> dict[str, Digest]:
    document = json.loads(store.manifest(root))
    return {
        "manifest": root.digest,
        "config": Digest.parse(document["config"]["digest"]),
        "layer": Digest.parse(document["layers"][-1]["digest"]),
    }


@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
def test_the_error_of_missing_content_names_it(store: ContentStore, place: Path, part: str) -> None:
    root = image(store, ONE, tar(file("y")))
    digest = parts(store, root)[part]
    store.delete(digest)
    assert f"{part} {digest}: not in {store.url}; fetch the image first" in refusal_message(store, root, place, NotFound)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_config_needs_one_diff_id_per_layer(store: ContentStore, place: Path, count: int) -> None:
    layer = add_content(store, ONE, OCI_LAYER)
    root = manifest(store, config(*[Digest.of(ONE)] * count), [layer, layer])
    assert f"expected a diff ID for each of 2 layers of {root}, got {count}" in refusal_message(store, root, place, Corrupt)


@pytest.mark.parametrize(
    ("rootfs", "error", "says"),
    [
        (None, InvalidInput, ".rootfs: missing"),
        ({"type": "zip"}, Unsupported, "expected layers, got 'zip'"),
        ({"type": "layers", "diff_ids": ["x"]}, InvalidInput, ".rootfs.diff_ids[0]: digest 'x': expected"),
        ({"type": "layers", "diff_ids": [1]}, InvalidInput, ".rootfs.diff_ids[0]: expected a string"),
    ],
)
def test_a_bad_config_is_refused_with_the_path_of_the_bad_key(
    store: ContentStore, place: Path, rootfs: object, error: type[Exception], says: str
) -> None:
    root = manifest(store, {"architecture": "amd64", "os": "linux", "rootfs": rootfs}, [])
    assert says in refusal_message(store, root, place, error)


def test_a_huge_config_is_refused(store: ContentStore, place: Path) -> None:
    root = manifest(store, config(padding="x" * 5_000_000), [])
    assert "expected at most 4194304 bytes" in refusal_message(store, root, place, InvalidInput)


# Corruption


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("percent", [0, 10, 50, 90, 99])
def test_the_error_of_a_damaged_blob_has_both_digests(store: ContentStore, place: Path, suffix: str, percent: int) -> None:
    blob = COMPRESS[suffix](tar(file("x", noise(200_000)), file("y", noise(200_000))))
    layer = add_content(store, blob, OCI_LAYER + suffix)
    root = manifest(store, config(Digest.of(b"any")), [layer])
    damaged = flip(blob, len(blob) * percent // 100)
    Place(url=store.url).plant(blob_path(layer.digest), damaged)
    message = refusal_message(store, root, place, Corrupt)
    assert message == f"blob {layer.digest} in {store.url}: the stored bytes have the digest {Digest.of(damaged)}"


@pytest.mark.parametrize("part", ["manifest", "config"])
def test_the_error_of_a_damaged_document_names_it(store: ContentStore, place: Path, part: str) -> None:
    root = image(store, ONE)
    digest = parts(store, root)[part]
    Place(url=store.url).plant(blob_path(digest), flip(store.read(digest), 5))
    assert str(digest) in refusal_message(store, root, place, Corrupt)


def test_the_error_of_a_blob_with_another_size_names_it(store: ContentStore, place: Path) -> None:
    root = image(store, ONE)
    digest = parts(store, root)["layer"]
    Place(url=store.url).plant(blob_path(digest), b"short")
    assert f"layer {digest} in {store.url}: expected" in refusal_message(store, root, place, Corrupt)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_the_error_of_a_wrong_diff_id_has_both_digests(store: ContentStore, place: Path, suffix: str) -> None:
    wanted, blob = Digest.of(b"other"), COMPRESS[suffix](ONE)
    message = refusal_message(store, single(store, blob, OCI_LAYER + suffix, diff_id=wanted), place, Corrupt)
    assert message == f"layer {Digest.of(blob)}: expected diff ID {wanted} as in the config, got {Digest.of(ONE)}"


@pytest.mark.parametrize("suffix", COMPRESS)
def test_the_diff_id_covers_bytes_after_the_archive(store: ContentStore, place: Path, suffix: str) -> None:
    blob = COMPRESS[suffix](ONE + b"trailing")
    assert f"got {Digest.of(ONE + b'trailing')}" in refusal_message(
        store, single(store, blob, OCI_LAYER + suffix, diff_id=Digest.of(ONE)), place, Corrupt
    )


def test_a_damaged_second_layer_fails_the_whole_image(store: ContentStore, place: Path) -> None:
    layers = [add_content(store, ONE, OCI_LAYER), add_content(store, tar(file("y")), OCI_LAYER)]
    refusal_message(store, manifest(store, config(Digest.of(ONE), Digest.of(ONE)), layers), place, Corrupt)


BIG = tar(file("x", noise(100_000)), file("y", noise(100_000)))
BROKEN = {
    "gzip cut": ("+gzip", gzip.compress(BIG)[:-1000]),
    "gzip without its sum": ("+gzip", gzip.compress(BIG)[:-4]),
    "gzip with another sum": ("+gzip", flip(gzip.compress(BIG), -8)),
    "gzip with junk behind": ("+gzip", gzip.compress(BIG) + b"junk"),
    "gzip that is tar": ("+gzip", BIG),
    "gzip that is zstd": ("+gzip", zstandard.compress(BIG)),
    "zstd cut": ("+zstd", zstandard.compress(BIG)[:-1000]),
    "zstd with another sum": ("+zstd", flip(zstandard.ZstdCompressor(write_checksum=True).compress(BIG), -1)),
    "zstd with junk behind": ("+zstd", zstandard.compress(BIG) + b"junk"),
    "zstd that is gzip": ("+zstd", gzip.compress(BIG)),
    "tar that is gzip": ("", gzip.compress(BIG)),
}


@pytest.mark.parametrize(("suffix", "blob"), BROKEN.values(), ids=BROKEN)
def test_a_damaged_compressed_stream_is_corrupt(store: ContentStore, place: Path, suffix: str, blob: bytes) -> None:
    root = single(store, blob, OCI_LAYER + suffix, diff_id=Digest.of(BIG))
    assert f"layer {Digest.of(blob)}: " in refusal_message(store, root, place, Corrupt)


def block(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


ARCHIVES = {
    "text": b"this is no archive" * 100,
    "one byte": b"x",
    "half a header": ONE[:300],
    "a file cut": BIG[:5000],
    "cut in the second header": BIG[: 512 + 100_352 + 200],
    "a bad sum in the second header": flip(BIG, 512 + 100_352 + 150),
    "a single block of zeros between entries": ONE[:1024] + bytes(512) + ONE,
    "a long name without its file": block(tarfile.GNUTYPE_LONGNAME, 10) + b"x".ljust(512, b"\0"),
    "a long name before the end": block(tarfile.GNUTYPE_LONGNAME, 10) + b"x".ljust(512, b"\0") + bytes(1024),
    "a negative size": block(tarfile.REGTYPE, -1024) + bytes(2048),
    "a negative size of a name": block(tarfile.GNUTYPE_LONGNAME, -1024) + bytes(2048),
    "a size as big as it gets": block(tarfile.REGTYPE, 2**80) + bytes(2048),
    "a sparse map of words": tar(file("x", b"x\n", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})),
    "a sparse map backwards": tar(
        file(
            "x",
            b"2\n500\n9\n5\n9\n".ljust(530, b"\0"),
            pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1000"},
        )
    ),
    "a sparse map beyond the file": tar(
        file(
            "x",
            b"1\n500\n9\n".ljust(521, b"\0"),
            pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "100"},
        )
    ),
}


@pytest.mark.parametrize("archive", ARCHIVES.values(), ids=ARCHIVES)
def test_an_invalid_or_incomplete_archive_is_corrupt(store: ContentStore, place: Path, archive: bytes) -> None:
    assert f"layer {Digest.of(archive)}: " in refusal_message(store, image(store, archive, suffix=""), place, Corrupt)


# The directory


def test_an_empty_directory_is_replaced(store: ContentStore, place: Path) -> None:
    (place / "rootfs").mkdir(mode=0o700)
    unpack(store, image(store, tar(directory("./", mode=0o751), file("x"))), place / "rootfs", platform=AMD64)
    assert (place / "rootfs").stat().st_mode & 0o7777 == 0o751
    assert [path.name for path in place.iterdir()] == ["rootfs"]


def test_a_link_to_an_empty_directory_is_followed(store: ContentStore, place: Path) -> None:
    (place / "real").mkdir()
    (place / "rootfs").symlink_to("real")
    unpack(store, image(store, ONE), place / "rootfs", platform=AMD64)
    assert (place / "rootfs").is_symlink()
    assert (place / "real/x").read_bytes() == b"one"


@pytest.mark.parametrize("make", [lambda path: path.write_bytes(b"mine"), lambda path: (path / "mine").mkdir(parents=True)])
def test_a_directory_in_use_stays_unchanged(store: ContentStore, place: Path, make: Callable[[Path], object]) -> None:
    make(place / "rootfs")
    before = tree(place)
    with pytest.raises(InvalidInput, match=f"^directory {place / 'rootfs'}: "):
        unpack(store, image(store, ONE), place / "rootfs", platform=AMD64)
    assert tree(place) == before


def test_a_directory_that_another_process_fills_meanwhile_stays_unchanged(
    store: ContentStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image(store, ONE)
    fill_late(monkeypatch, place / "rootfs")
    with pytest.raises(InvalidInput, match="got a directory with files"):
        unpack(store, root, place / "rootfs", platform=AMD64)
    assert set(tree(place)) == {".", "rootfs", "rootfs/mine"}


def fill_late(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Put a file into the target directory just before it is renamed."""
    rename = os.rename

    def fill_and_rename(source: Path, target: Path) -> None:
        (path / "mine").mkdir(parents=True)
        rename(source, target)

    monkeypatch.setattr(os, "rename", fill_and_rename)


@contextmanager
def mount_at(*arguments: str | Path, at: Path) -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    subprocess.run(["mount", *arguments, at], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", at], check=True)


def test_a_mount_point_is_refused_before_anything_is_written(
    store: ContentStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image(store, ONE)
    (place / "rootfs").mkdir()
    with mount_at("-t", "tmpfs", "tmpfs", at=place / "rootfs"):
        steps = interrupt(monkeypatch, before=0)
        with pytest.raises(InvalidInput, match=f"^directory {place}/rootfs: a mount point, .*; give a new directory below it"):
            unpack(store, root, place / "rootfs", platform=AMD64)
        assert steps == []
        monkeypatch.undo()
        unpack(store, root, place / "rootfs/in", platform=AMD64)
        assert (place / "rootfs/in/x").read_bytes() == b"one"
    assert [path.name for path in place.iterdir()] == ["rootfs"]


def test_a_bind_mount_is_refused_and_stays_unchanged(store: ContentStore, place: Path, tmp_path: Path) -> None:
    root = image(store, ONE)
    for path in (place / "rootfs", tmp_path / "elsewhere"):
        path.mkdir()
    with mount_at("--bind", tmp_path / "elsewhere", at=place / "rootfs"):
        with pytest.raises(InvalidInput, match=f"^directory {place}/rootfs: a mount point, "):
            unpack(store, root, place / "rootfs", platform=AMD64)
        assert [path.name for path in place.iterdir()] == ["rootfs"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_everything_is_durable_before_the_directory_appears(
    store: ContentStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image(store, ONE, tar(directory("ro/", mode=0)))
    seen = list[tuple[str, bool]]()

    def record(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def record_call(*args: object, **kwargs: object) -> object:
            seen.append((name, (place / "rootfs").exists()))
            return call(*args, **kwargs)

        return record_call

    for owner, name in ((os, "chmod"), (image_module, "sync"), (os, "rename"), (os, "fsync")):
        monkeypatch.setattr(owner, name, record(name, getattr(owner, name)))
    unpack(store, root, place / "rootfs", platform=AMD64)
    assert seen[-4:] == [("chmod", False), ("sync", False), ("rename", False), ("fsync", True)]


def test_a_failing_sync_is_an_error() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        sync(-1)


def test_a_directory_with_a_missing_parent_is_refused(store: ContentStore, place: Path) -> None:
    with pytest.raises(NotFound, match=r"^directory .*no/rootfs: "):
        unpack(store, image(store, ONE), place / "no/rootfs", platform=AMD64)


class Interrupted(BaseException):
    """Stands in for KeyboardInterrupt, which pytest handles itself."""


@pytest.mark.parametrize("number", range(40))
def test_an_interrupt_at_any_system_call_leaves_nothing(
    store: ContentStore, place: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    members = [directory("ro/", mode=0o555), file("ro/x", noise(10)), directory("ro/none/", mode=0), symlink("l", "ro")]
    root = image(store, tar(*members), tar(file("l/y"), link("z", "l/y")))
    steps = interrupt(monkeypatch, before=number)
    try:
        unpack(store, root, place / "rootfs", platform=AMD64)
    except Interrupted:
        monkeypatch.undo()
        assert list(place.iterdir()) == []
    else:
        assert len(steps) <= number  # there is no step with this number
        assert (place / "rootfs/ro/y").exists()


def interrupt(monkeypatch: pytest.MonkeyPatch, *, before: int) -> list[str]:
    """Raise before the call with this number that changes a disk. The result lists the calls before it."""
    seen: list[str] = []

    def count_step(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **kwargs: object) -> object:
            if len(seen) == before:
                seen.append("interrupted")
                raise Interrupted
            seen.append(name)
            return call(*args, **kwargs)

        return step

    for name in ("mkdir", "symlink", "link", "chown", "chmod", "utime", "rename", "fdopen"):
        monkeypatch.setattr(os, name, count_step(name, getattr(os, name)))
    return seen


# Without privileges

INTRACTABLE = tar(
    directory("ro/", mode=0o555),
    directory("ro/none/", mode=0),
    file("ro/none/x", b"x", mode=0, xattrs={"user.a": b"1"}, uid=5, gid=6, mtime=1),
    directory("./", mode=0o555),
)


def test_without_privileges_restrictive_modes_are_set_last(open_place: Path) -> None:
    store = open_store(str(open_place / "store"))
    root = image(store, INTRACTABLE, tar(whiteout("ro/none/y"), file("ro/none/z")))
    done = as_nobody(lambda: unpack(store, root, open_place / "rootfs", platform=AMD64))
    assert done.layers == 2
    found = tree(open_place / "rootfs")
    modes = {".": 0o555, "ro": 0o555, "ro/none": 0, "ro/none/x": 0, "ro/none/z": 0o644}
    assert {name: node.mode & 0o7777 for name, node in found.items()} == modes
    assert len({node.owner for node in found.values()}) == 1
    assert found["ro/none/x"].xattrs == (("user.a", b"1"),)


def test_without_privileges_a_tree_with_restrictive_modes_is_removed(open_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(open_place / "store"))
    root = image(store, INTRACTABLE)
    fill_late(monkeypatch, open_place / "rootfs")
    with pytest.raises(InvalidInput, match="got a directory with files"):
        as_nobody(lambda: unpack(store, root, open_place / "rootfs", platform=AMD64))
    assert {path.name for path in open_place.iterdir()} == {"store", "rootfs"}


def test_without_privileges_an_empty_file_replaces_a_device(open_place: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(str(open_place / "store"))
    root = image(store, tar(device("null", tarfile.CHRTYPE, 1, 3, mode=0o666, mtime=7), link("same", "null")))

    def unpack_and_tell() -> list[str]:
        unpack(store, root, open_place / "rootfs", platform=AMD64)
        return caplog.messages

    assert as_nobody(unpack_and_tell) == ["character 'null': creating a device needs root, created an empty file instead"]
    found = tree(open_place / "rootfs")
    assert (found["null"].mode, found["null"].mtime_ns) == (stat.S_IFREG | 0o666, 7_000_000_000)
    assert found["null"].names == {"null", "same"}


def test_a_full_disk_is_an_error_and_leaves_nothing(store: ContentStore, place: Path) -> None:
    with mount_at("-t", "tmpfs", "-o", "size=100k", "tmpfs", at=place):
        assert "file 'x': " in refusal_message(store, image(store, tar(file("x", noise(200_000)))), place, StoreFull)
