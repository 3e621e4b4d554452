"""dist ingest: standard input becomes a blob, at once or in several goes."""

import signal
import subprocess
import sys
from pathlib import Path

from prefect_dist.ocispec import Digest
from prefect_dist.storage import open_store
from tests.cli.dist import Result, command, dist
from tests.storage.archives import content
from tests.storage.conformance import ingest, noise

DATA = noise(400_000)
DIGEST = Digest.of(DATA)
HALF = len(DATA) // 2


def held(store: Path) -> dict[str, bytes]:
    return content(open_store(str(store)))


def left(store: Path) -> list[tuple[str, int]]:
    return [(status.ref, status.offset) for status in open_store(str(store)).active()]


def cut_short(store: Path, *options: str) -> Result:
    """An ingest that got half of what it was promised."""
    size = ("--expected-size", str(len(DATA)))
    return dist("--store", store, "ingest", "key", *size, *options, stdin=DATA[:HALF])


def test_what_comes_is_a_blob_and_its_digest_is_printed(tmp_path: Path) -> None:
    result = dist("--store", tmp_path, "ingest", "key", stdin=DATA)

    assert (result.code, result.lines, result.err) == (0, [str(DIGEST)], "")
    assert (held(tmp_path), left(tmp_path)) == ({str(DIGEST): DATA}, [])


def test_nothing_is_content_too(tmp_path: Path) -> None:
    assert dist("--store", tmp_path, "--output", "json", "ingest", "key").json == {"digest": str(Digest.of(b""))}


def test_the_algorithm_is_that_of_the_expected_digest(tmp_path: Path) -> None:
    expected = str(Digest.of(DATA, algorithm="sha512"))

    assert dist("--store", tmp_path, "ingest", "key", "--expected-digest", expected, stdin=DATA).lines == [expected]


def test_what_exists_is_success_and_not_read(tmp_path: Path) -> None:
    ingest(open_store(str(tmp_path)), DATA)

    assert dist("--store", tmp_path, "ingest", "key", stdin=DATA).lines == [str(DIGEST)]
    assert dist("--store", tmp_path, "ingest", "key", "--expected-digest", str(DIGEST)).lines == [str(DIGEST)]


def test_what_exists_does_not_have_a_size_that_it_has_not(tmp_path: Path) -> None:
    ingest(open_store(str(tmp_path)), DATA)

    result = dist("--store", tmp_path, "ingest", "key", "--expected-digest", str(DIGEST), "--expected-size", "7")

    assert (result.code, result.out) == (1, b"")
    assert result.line == f"dist: {DIGEST}: expected 7 bytes, but the blob in the store has {len(DATA)}"


def test_what_is_not_as_expected_is_not_stored(tmp_path: Path) -> None:
    other = Digest.of(b"other")

    result = dist("--store", tmp_path, "ingest", "key", "--expected-digest", str(other), stdin=DATA)

    assert (result.code, result.out) == (1, b"")
    assert result.line.startswith(f"dist: key: expected {other}, got {DIGEST}; the received bytes are kept")
    assert held(tmp_path) == {}


def test_what_is_cut_short_is_kept_and_gone_on_with(tmp_path: Path) -> None:
    short = cut_short(tmp_path)

    assert short.code == 1
    assert short.line.startswith(f"dist: key: expected {len(DATA)} bytes, got {HALF}; the received bytes are kept")
    assert (held(tmp_path), left(tmp_path)) == ({}, [("key", HALF)])
    assert dist("--store", tmp_path, "ingest", "key", "--resume", stdin=DATA).lines == [str(DIGEST)]
    assert (held(tmp_path), left(tmp_path)) == ({str(DIGEST): DATA}, [])


def test_what_is_there_is_neither_dropped_nor_gone_on_with_unasked(tmp_path: Path) -> None:
    cut_short(tmp_path)

    again = dist("--store", tmp_path, "ingest", "key", stdin=DATA)

    assert (again.code, again.out) == (1, b"")
    progress = f"interrupted after {HALF} of {len(DATA)} bytes"
    assert again.line == f"dist: ingest key: {progress}; continue with --resume, or discard them with --no-resume"
    assert left(tmp_path) == [("key", HALF)]


def test_what_is_there_can_be_dropped(tmp_path: Path) -> None:
    cut_short(tmp_path)
    cut_short(tmp_path, "--no-resume")

    assert dist("--store", tmp_path, "ingest", "key", "--no-resume", stdin=b"other").lines == [str(Digest.of(b"other"))]
    assert (held(tmp_path), left(tmp_path)) == ({str(Digest.of(b"other")): b"other"}, [])


def test_what_does_not_begin_with_what_is_there_is_refused(tmp_path: Path) -> None:
    cut_short(tmp_path)
    other = b"x" + DATA[1:]

    result = dist("--store", tmp_path, "ingest", "key", "--resume", stdin=other)

    assert result.code == 1
    assert result.line.startswith(f"dist: key: expected input that begins with the {HALF} bytes in the store")
    assert held(tmp_path) == {}
    assert left(tmp_path) == [("key", HALF)]
    assert dist("--store", tmp_path, "ingest", "key", "--resume", stdin=DATA).lines == [str(DIGEST)]


def test_going_on_wants_the_whole_content(tmp_path: Path) -> None:
    cut_short(tmp_path)

    result = dist("--store", tmp_path, "ingest", "key", "--resume", stdin=DATA[: HALF - 100])

    assert result.code == 1
    assert "key: expected the whole content, but standard input is 100 bytes shorter than the part in the store" in result.line
    assert left(tmp_path) == [("key", HALF)]


def test_what_is_learnt_later_counts_when_going_on(tmp_path: Path) -> None:
    cut_short(tmp_path)
    wrong = Digest.of(b"other")

    result = dist("--store", tmp_path, "ingest", "key", "--resume", "--expected-digest", str(wrong), stdin=DATA)

    assert (result.code, held(tmp_path)) == (1, {})
    assert f"expected {wrong}, got {DIGEST}" in result.line


def test_going_on_with_what_was_begun_for_other_content_is_refused(tmp_path: Path) -> None:
    cut_short(tmp_path, "--expected-digest", str(DIGEST))
    ingest(open_store(str(tmp_path)), DATA)
    other = Digest.of(b"other")

    result = dist("--store", tmp_path, "ingest", "key", "--resume", "--expected-digest", str(other), stdin=b"other")

    assert (result.code, result.out) == (1, b"")
    assert result.line == (
        f"dist: ingest key: expected digest {other}, but it was started for {DIGEST}; discard it with --no-resume"
    )


def test_an_ingest_that_got_nothing_is_in_nobodys_way(tmp_path: Path) -> None:
    with open_store(str(tmp_path)).writer("key"):
        pass

    assert dist("--store", tmp_path, "ingest", "key", "--expected-size", str(len(DATA)), stdin=DATA).lines == [str(DIGEST)]


def test_going_on_with_nothing_begins(tmp_path: Path) -> None:
    assert dist("--store", tmp_path, "ingest", "key", "--resume", stdin=DATA).lines == [str(DIGEST)]


def test_an_interrupt_keeps_what_came(tmp_path: Path) -> None:
    with subprocess.Popen(
        command("--store", tmp_path, "ingest", "key"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(DATA)  # ends when all but a pipe's 64 KiB has been read
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b"dist: interrupted\n"

    assert process.returncode == 130
    ((_, offset),) = left(tmp_path)
    assert 0 < offset <= len(DATA)
    assert dist("--store", tmp_path, "ingest", "key", "--resume", stdin=DATA).lines == [str(DIGEST)]


def test_an_interrupt_just_before_a_read_is_heard(tmp_path: Path) -> None:
    """Such a signal is known to Python and does not end the read: as if another thread had made Python know of it."""
    program = f"""
import _thread, sys, threading
from prefect_dist.cli.main import main
from prefect_dist.storage import open_store
from tests.peers.processes import poll_until

def interrupt(store):
    if poll_until(lambda: [status.offset for status in store.active()] == [{len(DATA)}], timeout_s=60):
        _thread.interrupt_main()

threading.Thread(target=interrupt, args=(open_store(sys.argv[2]),), daemon=True).start()
main()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, "--store", tmp_path, "ingest", "key"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(DATA)
        process.stdin.flush()
        assert process.stderr.read() == b"dist: interrupted\n"

    assert process.returncode == 130


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with open_store(str(tmp_path)).writer("key") as writer:
        writer.write(DATA)
        result = dist("--store", tmp_path, "ingest", "key", "--resume", stdin=DATA)

    assert result.code == 1
    assert "dist: key: another writer holds it since" in result.line
