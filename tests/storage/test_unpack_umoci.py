"""The result of unpacking, entry by entry, compared with umoci's result for the same image."""

import os
import struct
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies

from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.storage import ContentStore, open_store
from prefect_dist.storage.unpack import unpack
from tests.storage.conformance import noise
from tests.storage.layered import (
    AMD64,
    Member,
    UmociError,
    as_nobody,
    device,
    directory,
    fifo,
    file,
    image,
    link,
    opaque,
    symlink,
    tar,
    tree,
    umoci_unpack,
    whiteout,
)

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="owners and devices need root")
# Capabilities in the kernel's format (revision 2): cap_net_bind_service, permitted and effective.
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
T = 1_500_000_000
BASE = [
    directory("./", mode=0o755, mtime=T),
    directory("bin/", mtime=T + 1),
    file("bin/busybox", noise(70_000), mode=0o755, mtime=T + 2),
    link("bin/sh", "bin/busybox"),
    symlink("bin/ls", "busybox", mtime=T + 3),
    directory("etc/", mtime=T + 4),
    file("etc/passwd", b"root:x:0:0::/:/bin/sh\n", mtime=T + 5),
    file("etc/empty", mtime=T + 6),
    directory("usr/", mtime=T),
    directory("usr/lib/", mtime=T),
    symlink("lib", "usr/lib", mtime=T + 7),
    directory("tmp/", mode=0o1777, mtime=T + 8),
    directory("var/", mtime=T),
    directory("var/cache/", mtime=T),
    file("var/cache/a", b"a", mtime=T),
    directory("var/cache/deep/", mtime=T),
    file("var/cache/deep/b", b"b", mtime=T),
]


CASES: dict[str, list[list[Member]]] = {
    "no layers": [],
    "an empty layer": [[], BASE, []],
    "deleted file": [BASE, [whiteout("etc/passwd")]],
    "deleted directory": [BASE, [whiteout("var")]],
    "deleted link to a directory": [BASE, [whiteout("lib")]],
    "deleted one of two hard links": [BASE, [whiteout("bin/busybox")]],
    "deleted what is not there": [BASE, [whiteout("nothing"), whiteout("no/thing"), whiteout("etc/passwd/x")]],
    "deleted through a link": [BASE, [file("usr/lib/x", b"x", mtime=T)], [whiteout("lib/x")]],
    "deleted and made again": [BASE, [whiteout("etc/passwd")], [file("etc/passwd", b"new", mtime=T)]],
    "deleted before it is made": [BASE, [whiteout("etc/passwd"), file("etc/passwd", b"new", mtime=T)]],
    "deleted after it is made": [BASE, [file("etc/passwd", b"new", mtime=T), whiteout("etc/passwd")]],
    # The entry at the end, because umoci's own time is on a directory of which it hides a part.
    "directory deleted after a child is made": [
        BASE,
        [file("var/cache/new", b"n", mtime=T), whiteout("var/cache"), directory("var/cache/", mtime=T)],
    ],
    "opaque first": [BASE, [directory("var/cache/", mtime=T), opaque("var/cache"), file("var/cache/n", mtime=T)]],
    "opaque last": [BASE, [directory("var/cache/", mtime=T), file("var/cache/n", mtime=T), opaque("var/cache")]],
    "opaque without entry": [BASE, [opaque("var/cache")]],
    "opaque keeps what is made again": [BASE, [file("var/cache/a", b"2", mtime=T), opaque("var/cache")]],
    "opaque root": [BASE, [file("new", mtime=T), opaque("")]],
    "opaque where nothing is": [BASE, [opaque("nowhere")]],
    "opaque through a link": [[*BASE, file("usr/lib/x", mtime=T)], [opaque("lib")]],
    "file for directory": [BASE, [file("var", b"file", mtime=T)]],
    "directory for file": [BASE, [directory("etc/empty/", mtime=T), file("etc/empty/x", b"x", mtime=T)]],
    "directory for link": [BASE, [directory("lib/", mtime=T), file("lib/x", b"x", mtime=T)]],
    "link for directory": [BASE, [symlink("var", "tmp", mtime=T)]],
    "link for link": [BASE, [symlink("lib", "elsewhere", mtime=T)]],
    "fifo for file": [BASE, [fifo("etc/empty", mode=0o600, mtime=T)]],
    "file for hard link leaves the other": [BASE, [file("bin/sh", b"own", mtime=T)]],
    "hard link to a lower layer": [BASE, [link("etc/copy", "etc/passwd")]],
    "hard link through links": [BASE, [file("lib/x", mtime=T), link("y", "lib/x")]],
    "hard link to a link": [BASE, [link("bin/dir", "bin/ls")]],
    "hard link over a file": [BASE, [link("etc/empty", "etc/passwd")]],
    "hard link named absolutely": [BASE, [link("etc/copy", "/etc/passwd")]],
    "file through a link": [BASE, [file("lib/deep", b"d", mtime=T)]],
    "file through an absolute link": [BASE, [symlink("up", "/usr/lib", mtime=T), file("up/x", b"x", mtime=T)]],
    "file through an absolute link below": [BASE, [symlink("usr/up", "/etc", mtime=T), file("usr/up/x", b"x", mtime=T)]],
    "file through a link above the root": [BASE, [symlink("up", "../../usr", mtime=T), file("up/x", b"x", mtime=T)]],
    "directory changed, children kept": [BASE, [directory("var/cache/", mode=0o700, mtime=T + 99)]],
    "the same name twice": [BASE, [file("x", b"first", mtime=T), file("x", b"second", mtime=T + 1)]],
    "modes": [[file(f"f{mode:o}", mode=mode, mtime=T) for mode in (0o4755, 0o2755, 0o1644, 0o7777, 0o000, 0o444)]],
    "modes of directories": [[directory(f"d{mode:o}/", mode=mode, mtime=T) for mode in (0o3777, 0o7555, 0o000, 0o711)]],
    "a read-only directory is filled": [[directory("ro/", mode=0o555, mtime=T), file("ro/x", b"x", mtime=T)]],
    "a closed directory is filled later": [[directory("c/", mode=0, mtime=T)], [file("c/x", b"x", mtime=T)]],
    "a closed directory is deleted": [[directory("c/", mode=0, mtime=T), file("c/x", mtime=T)], [whiteout("c")]],
    "the root's own mode and time": [[directory("./", mode=0o711, mtime=T), file("x", mtime=T)]],
    "a read-only root": [[directory("./", mode=0o555, mtime=T), file("x", mtime=T)]],
    "fractional times": [[file("x", mtime=T + 0.123456789), file("y", pax_headers={"mtime": "1700000000.987654321"})]],
    "times before the epoch": [[file("x", mtime=-5), file("y", pax_headers={"mtime": "-5.25"})]],
    "time of a link": [[symlink("x", "y", mtime=T + 0.5)]],
    "names": [[directory("./", mtime=T), file("/abs", mtime=T), file("./dot", mtime=T), file("a é ☃\n", mtime=T)]],
    "dots inside": [[directory("a/", mtime=T), file("a/../b", b"b", mtime=T), file("a/./c", b"c", mtime=T)]],
    "no UTF-8": [[file("\udcff\udcfe", b"raw", mtime=T), symlink("l", "\udcff", mtime=T), link("h", "\udcff\udcfe")]],
    "long": [[directory("d" * 200 + "/", mtime=T), file("d" * 200 + "/" + "f" * 255, b"x", mtime=T)]],
    "long targets": [[symlink("l", "t" * 1000, mtime=T), file("f" * 150, b"x", mtime=T), link("h", "f" * 150)]],
    "xattrs": [[file("x", xattrs={"user.a": b"\xff\n=", "user.b": b"b"}, mtime=T)], [directory("./", mtime=T)]],
    "xattrs of a directory replaced": [
        [directory("d/", xattrs={"user.a": b"1", "user.b": b"2"}, mtime=T)],
        [directory("d/", xattrs={"user.b": b"3"}, mtime=T)],
    ],
    "big file": [[file("big", noise(5_000_000), mtime=T)]],
}


PRIVILEGED: dict[str, list[list[Member]]] = {
    "owners": [[*BASE, file("o", uid=1000, gid=2000, mode=0o6755, mtime=T), symlink("l", "o", uid=5, gid=6, mtime=T)]],
    "owner of a directory": [[directory("d/", uid=7, gid=8, mode=0o2775, mtime=T), file("d/x", uid=9, gid=8, mtime=T)]],
    "owner of the root": [[directory("./", uid=7, gid=8, mtime=T)]],
    "huge owner": [[file("x", uid=2**31 + 5, gid=2**32 - 2, mtime=T)]],
    "capability of a file that root gives away": [
        [file("x", b"x", uid=1000, mode=0o755, xattrs={"security.capability": CAPABILITY}, mtime=T)]
    ],
    "devices": [
        [
            device("null", tarfile.CHRTYPE, 1, 3, mode=0o666, mtime=T),
            device("loop", tarfile.BLKTYPE, 7, 300, mode=0o660, gid=6, mtime=T),
            link("other", "null"),
            fifo("fifo", mode=0o622, uid=3, mtime=T),
        ]
    ],
    "device replaced": [[device("x", tarfile.CHRTYPE, 1, 3, mtime=T)], [file("x", b"file", mtime=T)]],
    "trusted attribute of a link": [[symlink("l", "x", xattrs={"trusted.a": b"1"}, mtime=T)]],
}


# Few names, so that layers meet: in each other's way, above and below each other, through links. What is named x or y is
# seldom needed as a directory: most sequences can be unpacked.
NAMES = strategies.tuples(
    strategies.lists(strategies.sampled_from("abc"), max_size=2), strategies.sampled_from("abcxxxxyyyy")
).map(lambda parts: "/".join([*parts[0], parts[1]]))
TARGETS = strategies.one_of(NAMES, NAMES.map("/{}".format), NAMES.map("../{}".format))
TIMES = strategies.integers(T, T + 1000)
MODES = strategies.sampled_from([0o755, 0o700, 0o555, 0o4711, 0o000, 0o1777])
LOWEST = [file("x", b"x"), directory("a/"), file("a/x", b"ax"), directory("b/c/"), file("b/c/y", b"bcy")]
MEMBERS = strategies.one_of(
    strategies.builds(file, NAMES, strategies.binary(max_size=3), mode=MODES, mtime=TIMES, uid=strategies.integers(0, 9)),
    strategies.builds(directory, NAMES, mode=MODES, mtime=TIMES),
    strategies.builds(symlink, NAMES, TARGETS, mtime=TIMES),
    strategies.builds(fifo, NAMES, mtime=TIMES),
    strategies.builds(link, NAMES, strategies.sampled_from(["x", "a/x", "b/c/y"])),
    strategies.builds(whiteout, NAMES),
    strategies.builds(opaque, NAMES),
)


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return open_store(str(tmp_path / "store"))


def without_umoci_xattr(xattrs: tuple[tuple[str, bytes], ...]) -> tuple[tuple[str, bytes], ...]:
    """Return the attributes without that in which umoci records an owner that it could not set."""
    return tuple(pair for pair in xattrs if pair[0] != "user.rootlesscontainers")


def assert_same(tmp_path: Path, store: ContentStore, layers: list[list[Member]], *, layout: int = tarfile.PAX_FORMAT) -> None:
    tars = [tar(*members, layout=layout) for members in layers]
    unpack(store, image(store, *tars), tmp_path / "ours", platform=AMD64)
    assert tree(tmp_path / "ours") == tree(umoci_unpack(tmp_path, *tars))


@needs_root
@pytest.mark.parametrize("layers", CASES.values(), ids=CASES)
def test_an_image_unpacks_to_the_same_tree_as_with_umoci(
    tmp_path: Path, store: ContentStore, layers: list[list[Member]]
) -> None:
    assert_same(tmp_path, store, layers)


@needs_root
@pytest.mark.parametrize("layers", PRIVILEGED.values(), ids=PRIVILEGED)
def test_as_root_an_image_unpacks_to_the_same_tree_as_with_umoci(
    tmp_path: Path, store: ContentStore, layers: list[list[Member]]
) -> None:
    assert_same(tmp_path, store, layers)


@needs_root
@pytest.mark.parametrize("name", ["long", "long targets", "names", "no UTF-8", "modes"])
def test_archives_in_gnu_format_unpack_to_the_same_tree_as_with_umoci(tmp_path: Path, store: ContentStore, name: str) -> None:
    assert_same(tmp_path, store, CASES[name], layout=tarfile.GNU_FORMAT)


@pytest.mark.parametrize("layers", (CASES | PRIVILEGED).values(), ids=CASES | PRIVILEGED)
def test_without_privileges_an_image_unpacks_to_the_same_tree_as_with_rootless_umoci(
    open_place: Path, layers: list[list[Member]]
) -> None:
    tars = [tar(*members) for members in layers]
    store = open_store(str(open_place / "store"))
    root = image(store, *tars)
    as_nobody(lambda: unpack(store, root, open_place / "ours", platform=AMD64))
    ours, umocis = tree(open_place / "ours"), tree(umoci_unpack(open_place, *tars, rootless=True))
    assert ours == {name: node._replace(xattrs=without_umoci_xattr(node.xattrs)) for name, node in umocis.items()}


@needs_root
@settings(max_examples=40, deadline=None, derandomize=True)
@given(layers=strategies.lists(strategies.lists(MEMBERS, max_size=12), min_size=1, max_size=4))
def test_any_sequence_of_layers_unpacks_to_the_same_tree_as_with_umoci(
    tmp_path_factory: pytest.TempPathFactory, layers: list[list[Member]]
) -> None:
    place = tmp_path_factory.mktemp("layers")
    tars = [tar(*members) for members in (LOWEST, *layers)]
    store = open_store(str(place / "store"))
    try:
        unpack(store, image(store, *tars), place / "ours", platform=AMD64)
    except InvalidInput:
        with pytest.raises(UmociError):
            umoci_unpack(place, *tars)
    else:
        # umoci puts the time of its run on directories without an entry, and on those around them.
        assert tree(place / "ours", directory_times=False) == tree(umoci_unpack(place, *tars), directory_times=False)
