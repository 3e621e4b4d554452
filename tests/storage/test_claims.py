"""Claims of several processes on the same content of an object store: waiting, renewal, takeover, and notes."""

import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import Unavailable
from prefect_dist.storage import open_store
from prefect_dist.storage.backend import open_backend
from prefect_dist.storage.claims import ContentClaims
from tests.peers.processes import poll_until

DIGEST = Digest.of(b"layer")
RENEW_S, SILENCE_S = 0.05, 1.0


def wait_briefly(seconds: float) -> None:
    time.sleep(min(seconds, 0.01))


@pytest.fixture(params=["disk", "objects"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "disk" else f"memory://{uuid.uuid4().hex}"


def make_claims(place: str) -> ContentClaims:
    """Return the claims of one process."""
    backend, _, layout = open_backend(place, {})
    return ContentClaims(backend, layout, renew_s=RENEW_S, silence_s=SILENCE_S)


def test_a_second_process_waits_until_the_claim_ends(place: str) -> None:
    first, second, order = make_claims(place), make_claims(place), list[str]()

    def hold_second() -> None:
        with second.hold("registry.example", DIGEST, pause=wait_briefly):
            order.append("second")

    with first.hold("registry.example", DIGEST, pause=wait_briefly):
        thread = threading.Thread(target=hold_second)
        thread.start()
        thread.join(2 * SILENCE_S)  # longer than the silence after which a claim is taken over: the holder renews
        assert thread.is_alive()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_claims_on_other_content_and_in_other_groups_do_not_wait(place: str) -> None:
    first, second = make_claims(place), make_claims(place)
    with (
        first.hold("registry.example", DIGEST, pause=wait_briefly),
        second.hold("registry.example:5000", DIGEST, pause=fail),
        second.hold("registry.example", Digest.of(b"other"), pause=fail),
    ):
        pass


def fail(_seconds: float) -> None:
    pytest.fail("expected no other holder")


def test_a_silent_claim_is_taken_over_and_its_old_holder_does_not_renew_it(place: str) -> None:
    dead, other = make_claims(place), make_claims(place)
    with ExitStack() as stack:
        stack.enter_context(dead.hold("registry.example", DIGEST, pause=fail))
        dead.close()  # the process is paused: it renews no more
        started = time.monotonic()
        with other.hold("registry.example", DIGEST, pause=wait_briefly) as taken:
            assert time.monotonic() - started >= SILENCE_S
            for claim in tuple(dead._held):
                dead._renew_one(claim)  # the paused process wakes up
            raw, _ = other._backend.read_versioned(taken.path)
            assert taken.token.encode() in (raw or b"")


def test_a_note_reaches_later_holders_and_a_claim_without_a_new_note_is_removed(place: str) -> None:
    first, second = make_claims(place), make_claims(place)
    with first.hold("registry.example", DIGEST, pause=fail) as claim:
        assert claim.note is None
        claim.note = "team/app"
    for later in (second, first):
        with later.hold("registry.example", DIGEST, pause=fail) as claim:
            assert claim.note == "team/app"
    with first.hold("other.example", DIGEST, pause=fail) as claim:
        path = claim.path
    assert first._backend.read_versioned(path)[0] is None


def test_a_renewal_during_the_end_of_a_claim_does_not_lose_the_note(monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"memory://{uuid.uuid4().hex}"
    first, second, renewed = make_claims(place), make_claims(place), list[str]()
    first.close()  # only the renewal below happens
    read = first._backend.read_versioned

    def read_then_renew(path: str) -> tuple[bytes | None, str | None]:
        found = read(path)
        if not renewed:
            renewed.append(path)
            assert first._backend.replace(path, claim.to_json(is_ended=False) + b" ", found[1])
        return found

    with first.hold("registry.example", DIGEST, pause=fail) as claim:
        claim.note = "app"
        monkeypatch.setattr(first._backend, "read_versioned", read_then_renew)
    assert renewed
    with second.hold("registry.example", DIGEST, pause=fail) as claim:
        assert claim.note == "app"


@pytest.mark.parametrize("length", [10, 60, 190, 255, 4000])
def test_a_claim_on_a_long_location_is_held(place: str, length: int) -> None:
    first, second = make_claims(place), make_claims(place)
    longer = f"oci:/{'ä /' * (length // 3)}"
    with first.hold(longer, DIGEST, pause=fail) as claim, second.hold(f"{longer}x", DIGEST, pause=fail) as other:
        assert claim.path != other.path
        assert first._backend.read_versioned(claim.path)[0] == claim.to_json(is_ended=False)


def test_an_error_of_the_holder_ends_the_claim(place: str) -> None:
    first, second = make_claims(place), make_claims(place)
    with pytest.raises(RuntimeError), first.hold("registry.example", DIGEST, pause=fail):
        raise RuntimeError
    with second.hold("registry.example", DIGEST, pause=fail):
        pass


@pytest.mark.parametrize("damage", [b"", b"no JSON", b'{"ended": 1}'])
def test_a_damaged_claim_is_taken_over_after_the_silence(place: str, damage: bytes) -> None:
    claims = make_claims(place)
    with claims.hold("registry.example", DIGEST, pause=fail) as claim:
        path = claim.path
    claims._backend.put(path, damage)
    with claims.hold("registry.example", DIGEST, pause=wait_briefly) as claim:
        assert claim.note is None


def block_by_directory(path: Path) -> None:
    path.mkdir(parents=True)


def block_by_linked_lock(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.with_name(f"{path.name}.lock").symlink_to(path.with_name("elsewhere"))


def block_by_file(path: Path) -> None:
    path.parent.parent.mkdir()
    path.parent.write_bytes(b"")


@pytest.mark.parametrize("block", [block_by_directory, block_by_linked_lock, block_by_file])
def test_a_process_continues_without_a_claim_that_the_store_refuses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, block: Callable[[Path], None]
) -> None:
    claims, path = make_claims(str(tmp_path)), claim_path(str(tmp_path))
    block(path)
    for _ in range(2):
        with claims.hold("registry.example", DIGEST, pause=fail) as claim:
            assert claim.note is None
            claim.note = "app"
        assert claims.find_note("registry.example", DIGEST) is None
    warnings = [one.getMessage() for one in caplog.records]
    assert len(warnings) == 1
    assert warnings[0].startswith(
        f"continuing without a claim, so other processes may transfer the same content again: {path}: "
    )
    with claims.hold("other.example", DIGEST, pause=fail) as claim:
        claim.note = "app"
    assert claims.find_note("other.example", DIGEST) == "app"


def claim_path(place: str) -> Path:
    _, _, layout = open_backend(place, {})
    return Path(layout.claim("registry.example", DIGEST))


def test_a_stop_ends_the_wait_for_a_claim(place: str) -> None:
    first, second = make_claims(place), make_claims(place)

    def stop(_seconds: float) -> None:
        raise Unavailable("stopped")

    with (
        first.hold("registry.example", DIGEST, pause=fail),
        pytest.raises(Unavailable, match="stopped"),
        second.hold("registry.example", DIGEST, pause=stop),
    ):
        pytest.fail("expected another holder")


def test_of_many_processes_one_holds_the_claim_at_a_time(place: str) -> None:
    held, most, guard = 0, 0, threading.Lock()

    def hold() -> None:
        nonlocal held, most
        with make_claims(place).hold("registry.example", DIGEST, pause=wait_briefly):
            with guard:
                held += 1
                most = max(most, held)
            time.sleep(0.01)
            with guard:
                held -= 1

    threads = [threading.Thread(target=hold) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert poll_until(lambda: not any(thread.is_alive() for thread in threads), timeout_s=30)
    assert most == 1


def test_a_disk_needs_no_claims_on_downloads(tmp_path: Path) -> None:
    first, second = make_claims(str(tmp_path)), make_claims(str(tmp_path))
    with first.hold("fetch", DIGEST, pause=fail), second.hold("fetch", DIGEST, pause=fail):
        assert list(tmp_path.rglob("claims")) == []


def test_gc_removes_claims_and_files_of_runs_that_no_process_has_written_for_a_day(place: str) -> None:
    with open_store(place) as store:
        store.open_run("run-1").write("shard-0.json", b"{}")
        with store.claims.hold("registry.example", DIGEST, pause=fail) as claim:
            claim.note = "team/app"
        now = store.clock()
        kept = list(store.sweep_leftovers(now + timedelta(hours=23), now + timedelta(hours=23), dry_run=False))
        assert kept == []
        gone = list(store.sweep_leftovers(now + timedelta(hours=25), now + timedelta(hours=25), dry_run=False))
        names = {path.rpartition("/")[2].removesuffix(".lock") for path in gone}  # a disk also has a lock file
        assert names == {f"sha256-{DIGEST.hex}", "shard-0.json"}
        assert store.open_run("run-1").list_names() == []
