"""The command ingest stores standard input as a blob, in one or several attempts."""

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
    """An interrupted ingest that received half of its declared size."""
    size = ("--expected-size", str(len(DATA)))
    return dist("--store", store, "ingest", "key", *size, *options, stdin=DATA[:HALF])


def test_ingest_stores_standard_input_and_prints_its_digest(tmp_path: Path) -> None:
    result = dist("--store", tmp_path, "ingest", "key", stdin=DATA)

    assert (result.code, result.lines, result.err) == (0, [str(DIGEST)], "")
    assert (held(tmp_path), left(tmp_path)) == ({str(DIGEST): DATA}, [])


def test_ingest_of_empty_content(tmp_path: Path) -> None:
    assert dist("--store", tmp_path, "--output", "json", "ingest", "key").json == {"digest": str(Digest.of(b""))}


def test_the_algorithm_is_that_of_the_expected_digest(tmp_path: Path) -> None:
    expected = str(Digest.of(DATA, algorithm="sha512"))

    assert dist("--store", tmp_path, "ingest", "key", "--expected-digest", expected, stdin=DATA).lines == [expected]


def test_existing_content_is_success_and_input_is_not_read(tmp_path: Path) -> None:
    ingest(open_store(str(tmp_path)), DATA)

    assert dist("--store", tmp_path, "ingest", "key", stdin=DATA).lines == [str(DIGEST)]
    assert dist("--store", tmp_path, "ingest", "key", "--expected-digest", str(DIGEST)).lines == [str(DIGEST)]


def test_a_wrong_expected_size_of_existing_content_fails(tmp_path: Path) -> None:
    ingest(open_store(str(tmp_path)), DATA)

    result = dist("--store", tmp_path, "ingest", "key", "--expected-digest", str(DIGEST), "--expected-size", "7")

    assert (result.code, result.out) == (1, b"")
    assert result.line == f"dist: {DIGEST}: expected 7 bytes, but the blob in the store has {len(DATA)}"


def test_content_with_a_wrong_digest_or_size_is_not_stored(tmp_path: Path) -> None:
    other = Digest.of(b"other")

    result = dist("--store", tmp_path, "ingest", "key", "--expected-digest", str(other), stdin=DATA)

    assert (result.code, result.out) == (1, b"")
    assert result.line.startswith(f"dist: key: expected {other}, got {DIGEST}; the received bytes are kept")
    assert held(tmp_path) == {}


def test_a_truncated_ingest_is_kept_and_resumed(tmp_path: Path) -> None:
    short = cut_short(tmp_path)

    assert short.code == 1
    assert short.line.startswith(f"dist: key: expected {len(DATA)} bytes, got {HALF}; the received bytes are kept")
    assert (held(tmp_path), left(tmp_path)) == ({}, [("key", HALF)])
    assert dist("--store", tmp_path, "ingest", "key", "--resume", stdin=DATA).lines == [str(DIGEST)]
    assert (held(tmp_path), left(tmp_path)) == ({str(DIGEST): DATA}, [])


def test_an_interrupted_ingest_requires_a_choice(tmp_path: Path) -> None:
    cut_short(tmp_path)

    again = dist("--store", tmp_path, "ingest", "key", stdin=DATA)

    assert (again.code, again.out) == (1, b"")
    progress = f"interrupted after {HALF} of {len(DATA)} bytes"
    assert again.line == f"dist: ingest key: {progress}; continue with --resume, or discard them with --no-resume"
    assert left(tmp_path) == [("key", HALF)]


def test_no_resume_discards_an_interrupted_ingest(tmp_path: Path) -> None:
    cut_short(tmp_path)
    cut_short(tmp_path, "--no-resume")

    assert dist("--store", tmp_path, "ingest", "key", "--no-resume", stdin=b"other").lines == [str(Digest.of(b"other"))]
    assert (held(tmp_path), left(tmp_path)) == ({str(Digest.of(b"other")): b"other"}, [])


def test_resume_refuses_input_with_a_different_beginning(tmp_path: Path) -> None:
    cut_short(tmp_path)
    other = b"x" + DATA[1:]

    result = dist("--store", tmp_path, "ingest", "key", "--resume", stdin=other)

    assert result.code == 1
    assert result.line.startswith(f"dist: key: expected input that begins with the {HALF} bytes in the store")
    assert held(tmp_path) == {}
    assert left(tmp_path) == [("key", HALF)]
    assert dist("--store", tmp_path, "ingest", "key", "--resume", stdin=DATA).lines == [str(DIGEST)]


def test_resume_refuses_input_that_is_shorter_than_the_stored_part(tmp_path: Path) -> None:
    cut_short(tmp_path)

    result = dist("--store", tmp_path, "ingest", "key", "--resume", stdin=DATA[: HALF - 100])

    assert result.code == 1
    assert "key: expected the whole content, but standard input is 100 bytes shorter than the part in the store" in result.line
    assert left(tmp_path) == [("key", HALF)]


def test_resume_checks_a_digest_that_was_given_later(tmp_path: Path) -> None:
    cut_short(tmp_path)
    wrong = Digest.of(b"other")

    result = dist("--store", tmp_path, "ingest", "key", "--resume", "--expected-digest", str(wrong), stdin=DATA)

    assert (result.code, held(tmp_path)) == (1, {})
    assert f"expected {wrong}, got {DIGEST}" in result.line


def test_resume_refuses_an_ingest_of_another_digest(tmp_path: Path) -> None:
    cut_short(tmp_path, "--expected-digest", str(DIGEST))
    ingest(open_store(str(tmp_path)), DATA)
    other = Digest.of(b"other")

    result = dist("--store", tmp_path, "ingest", "key", "--resume", "--expected-digest", str(other), stdin=b"other")

    assert (result.code, result.out) == (1, b"")
    assert result.line == (
        f"dist: ingest key: expected digest {other}, but it was started for {DIGEST}; discard it with --no-resume"
    )


def test_an_interrupted_ingest_without_bytes_requires_no_choice(tmp_path: Path) -> None:
    with open_store(str(tmp_path)).writer("key"):
        pass

    assert dist("--store", tmp_path, "ingest", "key", "--expected-size", str(len(DATA)), stdin=DATA).lines == [str(DIGEST)]


def test_resume_without_an_interrupted_ingest_starts_one(tmp_path: Path) -> None:
    assert dist("--store", tmp_path, "ingest", "key", "--resume", stdin=DATA).lines == [str(DIGEST)]


def test_an_interrupt_keeps_received_bytes(tmp_path: Path) -> None:
    with subprocess.Popen(
        command("--store", tmp_path, "ingest", "key"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(DATA)  # returns when all bytes but the 64 KiB of the pipe have been read
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b"dist: interrupted\n"

    assert process.returncode == 130
    ((_, offset),) = left(tmp_path)
    assert 0 < offset <= len(DATA)
    assert dist("--store", tmp_path, "ingest", "key", "--resume", stdin=DATA).lines == [str(DIGEST)]


def test_an_interrupt_just_before_a_read_ends_the_command(tmp_path: Path) -> None:
    """Python receives such a signal, but the read continues, as if another thread had received the signal."""
    program = f"""
import _thread, sys, threading
from prefect_dist.cli.main import main
from prefect_dist.storage import open_store
from tests.peers.processes import poll_until

def interrupt(store):
    if poll_until(lambda: [status.offset for status in store.active()] == [{len(DATA)}]):
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


def test_a_second_writer_of_a_key_fails(tmp_path: Path) -> None:
    with open_store(str(tmp_path)).writer("key") as writer:
        writer.write(DATA)
        result = dist("--store", tmp_path, "ingest", "key", "--resume", stdin=DATA)

    assert result.code == 1
    assert "dist: key: another writer has been active since" in result.line
