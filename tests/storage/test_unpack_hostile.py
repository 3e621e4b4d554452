"""Layers that try to leave their root or to use too many resources. Files outside of the root stay unchanged."""

import gzip
import logging
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefect_dist.ocispec.errors import Corrupt, DistError, InvalidInput, Unsupported
from prefect_dist.storage import ContentStore, open_store
from prefect_dist.storage.unpack import unpack
from tests.peers.processes import PATIENCE_S
from tests.storage.layered import (
    AMD64,
    Member,
    device,
    directory,
    file,
    image,
    link,
    member,
    opaque,
    symlink,
    tar,
    tree,
    whiteout,
)

REPOSITORY = Path(__file__).parents[2]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="devices need root")


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """Yield a directory next to the unpacked root file system, and check at the end that it is unchanged."""
    victim = tmp_path / "place/victim"
    (victim / "deep").mkdir(parents=True)
    (victim / "secret").write_bytes(b"secret")
    (victim / "secret").chmod(0o600)
    (victim / "deep/file").write_bytes(b"deep")
    before = tree(victim.parent)
    yield victim
    after = tree(victim.parent)
    assert {name: node for name, node in after.items() if name.startswith("victim")} == {
        name: node for name, node in before.items() if name != "."
    }
    assert {path.name for path in victim.parent.iterdir()} <= {"victim", "rootfs"}


def unpack_next_to(store: ContentStore, victim: Path, *layers: list[Member]) -> dict[str, bytes]:
    """Unpack an image next to the victim and return the files of its root file system."""
    unpack(store, image(store, *(tar(*members) for members in layers)), victim.parent / "rootfs", platform=AMD64)
    return {name: node.content for name, node in tree(victim.parent / "rootfs").items() if name != "."}


def refusal_message(store: ContentStore, victim: Path, *layers: list[Member], error: type[DistError] = InvalidInput) -> str:
    """Return the error message of an image that is refused. No file of it may remain."""
    with pytest.raises(error) as caught:
        unpack_next_to(store, victim, *layers)
    assert not (victim.parent / "rootfs").exists()
    assert str(caught.value).startswith("layer sha256:")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["../victim/new", "..", "a/../../victim/new", "/../victim/new", "./../victim/secret"])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_name_that_leads_out_of_the_root_is_refused(store: ContentStore, victim: Path, name: str, kind: bytes) -> None:
    message = refusal_message(store, victim, [member(name, kind, linkname="x")])
    assert "leads out of the image with .." in message
    assert repr(name) in message


@pytest.mark.parametrize("target", ["../victim/secret", "/../victim/secret", "a/../../victim/secret"])
def test_a_hard_link_that_leads_out_of_the_root_is_refused(store: ContentStore, victim: Path, target: str) -> None:
    assert "leads out of the image with .." in refusal_message(store, victim, [link("x", target)])


def test_an_absolute_name_starts_at_the_root_of_the_image(store: ContentStore, victim: Path) -> None:
    found = unpack_next_to(store, victim, [file(f"{victim}/secret", b"mine")])
    assert found[f"{victim}/secret".removeprefix("/")] == b"mine"


def test_the_absolute_target_of_a_hard_link_starts_at_the_root_of_the_image(store: ContentStore, victim: Path) -> None:
    assert "is missing" in refusal_message(store, victim, [link("x", f"{victim}/secret")])


@pytest.mark.parametrize("split", [False, True], ids=["one layer", "two layers"])
@pytest.mark.parametrize("target", ["{}", "../victim", "../../../../../../../../../../{}"])
def test_a_symbolic_link_out_of_the_root_is_followed_inside_the_root(
    store: ContentStore, victim: Path, target: str, *, split: bool
) -> None:
    lower = [symlink("out", target.format(victim))]
    upper = [file("out/secret", b"mine"), directory("out/deep/", mode=0o777), symlink("out/new", "x"), whiteout("out/file")]
    found = unpack_next_to(store, victim, *((lower, upper) if split else (lower + upper,)))
    assert [content for name, content in found.items() if name.endswith("/secret")] == [b"mine"]


def test_a_file_replaces_a_symbolic_link(store: ContentStore, victim: Path) -> None:
    layers = [symlink("x", str(victim / "secret"))], [file("x", b"mine", mode=0o777)]
    assert unpack_next_to(store, victim, *layers) == {"x": b"mine"}


def test_a_directory_replaces_a_symbolic_link(store: ContentStore, victim: Path) -> None:
    layers = [symlink("x", str(victim))], [directory("x/", mode=0o777, mtime=1), file("x/secret", b"mine")]
    assert unpack_next_to(store, victim, *layers) == {"x": b"", "x/secret": b"mine"}


def test_a_hard_link_through_a_symbolic_link_stays_inside_the_root(store: ContentStore, victim: Path) -> None:
    assert "is missing" in refusal_message(store, victim, [symlink("out", str(victim)), link("x", "out/secret")])


def test_a_hard_link_to_a_symbolic_link_links_the_link_itself(store: ContentStore, victim: Path) -> None:
    target = bytes(victim / "secret")
    assert unpack_next_to(store, victim, [symlink("out", str(victim / "secret")), link("x", "out")]) == {
        "out": target,
        "x": target,
    }


@pytest.mark.parametrize("hide", [whiteout("out/secret"), whiteout("out/deep"), opaque("out"), opaque("out/deep")])
def test_a_whiteout_through_a_symbolic_link_out_of_the_root_removes_nothing(
    store: ContentStore, victim: Path, hide: Member
) -> None:
    for target in (str(victim), "../victim"):
        assert unpack_next_to(store, victim, [symlink("out", target)], [hide]) == {"out": target.encode()}
        (victim.parent / "rootfs/out").unlink()


def test_a_whiteout_of_a_directory_does_not_follow_the_links_in_it(store: ContentStore, victim: Path) -> None:
    lower = [directory("d/"), symlink("d/out", str(victim)), symlink("d/up", "../../victim"), directory("d/e/", mode=0)]
    assert unpack_next_to(store, victim, lower, [whiteout("d")]) == {}


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..", "d/.wh..."])
def test_a_whiteout_without_a_name_is_refused(store: ContentStore, victim: Path, name: str) -> None:
    assert "expected the name of a file after the prefix .wh., got none" in refusal_message(
        store, victim, [directory("d/"), file(name)]
    )


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("name", [".", "/", "./", "a/.."])
def test_the_root_can_only_be_a_directory(store: ContentStore, victim: Path, name: str, kind: bytes) -> None:
    message = refusal_message(store, victim, [member(name, kind, linkname=str(victim))])
    assert "expected a directory as the root of the image" in message


def test_a_hard_link_to_the_root_is_refused(store: ContentStore, victim: Path) -> None:
    assert "got the root" in refusal_message(store, victim, [link("x", "/")])


def test_a_hard_link_to_a_directory_is_refused(store: ContentStore, victim: Path) -> None:
    assert "'d' is a directory" in refusal_message(store, victim, [directory("d/"), link("x", "d")])


def test_an_entry_below_a_file_is_refused(store: ContentStore, victim: Path) -> None:
    assert "file 'x/y'" in refusal_message(store, victim, [file("x"), file("x/y")])


@pytest.mark.parametrize("members", [[symlink("a", "a")], [symlink("a", "b"), symlink("b", "a/x")]])
def test_a_cycle_of_symbolic_links_is_refused(store: ContentStore, victim: Path, members: list[Member]) -> None:
    assert "at most 40 links" in refusal_message(store, victim, [*members, file("a/x")])


def test_a_chain_of_forty_links_is_followed(store: ContentStore, victim: Path) -> None:
    chain = [symlink(f"l{number}", f"l{number + 1}") for number in range(39)]
    assert unpack_next_to(store, victim, [directory("d/"), *chain, symlink("l39", "d"), file("l0/x", b"x")])["d/x"] == b"x"


@needs_root
def test_a_device_that_replaces_a_link_is_created_inside_the_root(store: ContentStore, victim: Path) -> None:
    unpack_next_to(store, victim, [symlink("x", str(victim / "secret"))], [device("x", tarfile.CHRTYPE, 1, 3, mode=0o666)])
    assert (victim.parent / "rootfs/x").is_char_device()


@pytest.mark.parametrize("key", ["GNU.sparse.size", "GNU.sparse.realsize"])
def test_a_sparse_size_beyond_64_bits_is_refused(store: ContentStore, victim: Path, key: str) -> None:
    sparse = {"GNU.sparse.map": "0,0", "GNU.sparse.size": "1", key: "9" * 20}
    message = refusal_message(store, victim, [file("x", pax_headers=sparse)], error=Corrupt)
    assert "expected a number below 2^63, got 99999999999999999999" in message


def test_trees_of_256_levels_are_created_and_removed(store: ContentStore, victim: Path) -> None:
    assert unpack_next_to(store, victim, [file("a/" * 255 + "x")], [whiteout("a")]) == {}


def test_trees_of_more_than_256_levels_are_refused(store: ContentStore, victim: Path) -> None:
    assert "expected at most 256 components in the path, got 257" in refusal_message(store, victim, [file("a/" * 256 + "x")])
    through_link = [directory("a/" * 200), symlink("s", "a/" * 200), directory("s/" + "b/" * 58)]
    assert "expected at most 256 components in its path" in refusal_message(store, victim, through_link)


def test_paths_longer_than_linux_allows_are_refused(store: ContentStore, victim: Path) -> None:
    long = f"{'n' * 250}/"
    deep = [directory(long * 10), symlink("s", long * 10), directory("s/" + long * 10)]
    assert "at most 4095 bytes" in refusal_message(store, victim, deep)


def test_links_with_very_many_names_are_refused(store: ContentStore, victim: Path) -> None:
    chain = [directory("a/"), *(symlink(f"l{number}", f"{'a/../' * 150}l{number + 1}") for number in range(39))]
    assert "at most 512 components in one path" in refusal_message(store, victim, [*chain, directory("l39/"), file("l0/x")])


def test_the_number_of_directories_without_an_entry_is_limited(
    store: ContentStore, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_dist.storage.unpack.rootfs._UNDESCRIBED", 10)
    assert "expected at most 10, plus 4 for each entry" in refusal_message(store, victim, [file("a/" * 15 + "x")])
    assert "a/x" in unpack_next_to(store, victim, [file("a/" * 14 + "x"), file("a/x")])


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (file("x" * 256), "of the path, got 256"),
        (file("x/" * 2500), "at most 4095 bytes"),
        (symlink("x", "y/" * 2500), "at most 4095 bytes"),
        (symlink("x", ""), "the symbolic link has no target"),
        (file("x", pax_headers={"path": "a\0b"}), "without zero bytes"),
        (symlink("x", "y", pax_headers={"linkpath": "a\0b"}), "without zero bytes"),
        (file("x", uid=2**32 - 1), "expected an owner from 0 to 4294967294"),
        (file("x", gid=-1), "expected an owner"),
        (file("x", pax_headers={"uid": "99999999999"}), "expected an owner"),
        (file("x", pax_headers={"mtime": "nan"}), "expected a time"),
        (file("x", pax_headers={"mtime": "1e400"}), "expected a time"),
        (file("x", pax_headers={"mtime": "9" * 19}), "expected a time"),
        (device("x", tarfile.CHRTYPE, 2**12, 0), "no device 4096:0"),
        (device("x", tarfile.BLKTYPE, 0, 2**20), "no device 0:1048576"),
        (file("x", xattrs={"": b"x"}), "is not a valid extended attribute"),
        (file("x", xattrs={"user." + "x" * 300: b"x"}), "is not a valid extended attribute"),
        (file("x", xattrs={"user.\0": b"x"}), "is not a valid extended attribute"),
    ],
)
def test_values_that_linux_does_not_support_are_refused(store: ContentStore, victim: Path, bad: Member, says: str) -> None:
    assert says in refusal_message(store, victim, [bad])


@pytest.mark.parametrize("kind", [b"Z", b"D", b"M", b"V"])
def test_other_types_of_entries_are_refused_with_their_type(store: ContentStore, victim: Path, kind: bytes) -> None:
    assert f"got an entry of type {kind!r}" in refusal_message(store, victim, [member("x", kind)], error=Unsupported)


def test_extended_attributes_of_the_machine_are_not_set(store: ContentStore, victim: Path) -> None:
    foreign = {"trusted.overlay.redirect": b"/victim", "security.selinux": b"x", "system.nfs4_acl": b"x"}
    unpack_next_to(store, victim, [file("x", xattrs=foreign)])
    assert set(os.listxattr(victim.parent / "rootfs/x")).isdisjoint(foreign)


def test_extended_attributes_that_a_file_system_refuses_are_logged_once(
    store: ContentStore, victim: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        unpack_next_to(store, victim, [file("x", xattrs={"nothing.x": b"1"}), file("y", xattrs={"nothing.x": b"1"})])
    assert [record.getMessage() for record in caplog.records] == [
        "the file system refuses the extended attribute 'nothing.x', files lack it: Operation not supported"
    ]


# Decompression bombs, unpacked by a process with limited memory

MEMORY_BYTES = 60_000_000
HUGE = 80_000_000
CPU_SECONDS = 14
UNPACK = """
import resource, sys
from pathlib import Path
from prefect_dist.ocispec import Descriptor, Digest, Platform
from prefect_dist.storage import open_store
from prefect_dist.storage.unpack import unpack

store, digest, size, memory_bytes, cpu_seconds = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_DATA, (int(memory_bytes),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds),) * 2)
root = Descriptor(media_type="application/vnd.oci.image.manifest.v1+json", digest=Digest.parse(digest), size=int(size))
unpack(open_store(store), root, Path(store, "../rootfs"), platform=Platform.parse("linux/amd64"))
"""


def explode(store: ContentStore, archive: bytes, *, suffix: str = "+gzip") -> str:
    """Unpack an image in a process with limited memory and CPU time. Return the last line that it prints; empty on success."""
    root = image(store, archive, suffix=suffix)
    limits = str(MEMORY_BYTES), str(CPU_SECONDS)
    argv = [sys.executable, "-c", UNPACK, store.url, str(root.digest), str(root.size), *limits]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    last = (done.stderr.splitlines() or [""])[-1]
    assert done.returncode == 0 or last, f"ended by signal {-done.returncode}"
    return last


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def sparse_header(*, extended: bool) -> bytes:
    """Return a GNU header of a sparse file in the old format, optionally with a map that continues in the next block."""
    raw = bytearray(header(tarfile.GNUTYPE_SPARSE, 0))
    raw[482], raw[148:156] = extended, b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


MAP_BLOCK = (b"%011o\0" % 1) * 42 + b"\1".ljust(8, b"\0")
# Functions, so that only the test of an archive has its bytes in memory.
BOMBS: dict[str, Callable[[], bytes]] = {
    "pax header": lambda: header(tarfile.XHDTYPE, HUGE) + bytes(HUGE),
    "global pax header": lambda: header(tarfile.XGLTYPE, HUGE) + bytes(HUGE),
    "long name": lambda: header(tarfile.GNUTYPE_LONGNAME, HUGE) + b"x" * HUGE,
    "long target": lambda: header(tarfile.GNUTYPE_LONGLINK, 2**60),
    "headers of headers": lambda: header(tarfile.XHDTYPE, 0) * 20_000,
    "old sparse map": lambda: sparse_header(extended=True) + MAP_BLOCK * (HUGE // 512),
    "new sparse map": lambda: tar(
        file("x", b"99999999\n" + b"1\n" * (HUGE // 2), pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})
    ),
}


@pytest.mark.parametrize("suffix", ["+gzip", "+zstd"])
def test_large_content_does_not_fill_memory(store: ContentStore, suffix: str) -> None:
    # The content of a whiteout is not written, so this tests memory and not the disk.
    assert explode(store, tar(file(".wh.x", bytes(HUGE))), suffix=suffix) == ""


def test_trailing_bytes_do_not_fill_memory(store: ContentStore) -> None:
    assert explode(store, tar() + bytes(HUGE)) == ""


def test_very_many_entries_do_not_fill_memory(store: ContentStore) -> None:
    assert explode(store, header(tarfile.REGTYPE, 0, ".wh..wh.aufs") * 100_000) == ""


@pytest.mark.parametrize("name", BOMBS)
def test_headers_do_not_fill_memory(store: ContentStore, name: str) -> None:
    assert "Corrupt" in explode(store, BOMBS[name]())


def global_header(number: int) -> bytes:
    """Return a global pax header with keys that no other header has."""
    return tarfile.TarInfo.create_pax_global_header({f"key{number}.{key}": "x" for key in range(1500)})


def test_global_headers_do_not_accumulate_in_memory(store: ContentStore) -> None:
    headers, entry = [global_header(number) for number in range(600)], file(".wh..wh.aufs").header.tobuf()
    archive = b"".join(headers) + tar(file(".wh.x"))
    assert len(gzip.compress(archive)) < 4_000_000
    assert "Corrupt" in explode(store, archive)
    assert explode(store, b"".join(header + entry for header in headers)) == ""


def test_global_headers_change_no_entry(store: ContentStore, victim: Path) -> None:
    header = tarfile.TarInfo.create_pax_global_header({"path": "other", "size": "5", "comment": "of git archive"})
    unpack(store, image(store, header + tar(file("x", b"x"))), victim.parent / "rootfs", platform=AMD64)
    assert {name: node.content for name, node in tree(victim.parent / "rootfs").items()} == {".": b"", "x": b"x"}


def records(count: int) -> bytes:
    """Return a pax header with the shortest possible records."""
    return header(tarfile.XHDTYPE, 5 * count) + (b"5 x=\n" * count).ljust(5 * count + -5 * count % 512, b"\0")


def test_too_many_pax_records_are_refused(store: ContentStore) -> None:
    many, entry = records(90_000), header(tarfile.REGTYPE, 0, ".wh..wh.aufs")
    assert "an entry has more than 100000 pax records" in explode(store, records(100_001) + entry)
    assert explode(store, (many + entry) * 11) == ""
    assert "more than 1000000 pax records and extents, plus 100 for each entry" in explode(store, (many + entry) * 100)


def test_replacing_read_only_directories_takes_linear_time(store: ContentStore) -> None:
    count = 16_000
    closed = (directory(f"d{number}/", mode=0o555) for number in range(count))
    files = (file(f"d{number}") for number in range(count))
    assert explode(store, tar(*closed, *files)) == ""


def test_opaque_directories_are_searched_once(store: ContentStore, victim: Path) -> None:
    deep = "a/" * 250
    assert explode(store, tar(file(f"{deep}x"), *[opaque("")] * 1000, *[opaque("a/a")] * 1000)) == ""
    upper = [file(f"{deep}new"), *[opaque("")] * 1000, file("a/b/new"), opaque("a")]
    found = unpack_next_to(store, victim, [file(f"{deep}x"), file("a/b/x"), file("y")], upper)
    assert {name for name in found if name.endswith(("x", "y", "new"))} == {f"{deep}new", "a/b/new"}


def test_deep_paths_share_memory(store: ContentStore) -> None:
    closed = (directory(f"{'aa/' * 250}{number}/", mode=0) for number in range(3000))
    assert explode(store, tar(*closed)) == ""


def test_the_mode_of_a_removed_directory_is_not_applied_to_another_file(store: ContentStore, victim: Path) -> None:
    lower = [directory("a/", mode=0o500), directory("a/b/", mode=0), directory("c/b/", mode=0o755), directory("e/", mode=0)]
    upper = [symlink("a", "c"), file("e", mode=0o644)]
    unpack_next_to(store, victim, lower, upper)
    found = tree(victim.parent / "rootfs")
    assert {name: found[name].mode & 0o7777 for name in ("c/b", "e")} == {"c/b": 0o755, "e": 0o644}


def test_a_hole_needs_neither_time_nor_space(store: ContentStore, victim: Path) -> None:
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x", "GNU.sparse.realsize": str(2**42)}
    content = (f"2\n{2**30}\n4\n{2**42}\n0\n".encode()).ljust(512, b"\0") + b"data"
    unpack(store, image(store, tar(file("x", content, pax_headers=sparse))), victim.parent / "rootfs", platform=AMD64)
    with (victim.parent / "rootfs/x").open("rb") as found:
        status = os.fstat(found.fileno())
        assert status.st_size == 2**42
        assert status.st_blocks < 100
        assert os.pread(found.fileno(), 6, 2**30 - 1) == b"\0data\0"
    (victim.parent / "rootfs/x").unlink()  # otherwise the fixture would read the file
