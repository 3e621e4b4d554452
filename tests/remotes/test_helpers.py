"""Credential helpers: real programs on PATH, with correct and with wrong behaviour."""

import json
import logging
import os
import re
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dist.ocispec.errors import Denied
from prefect_dist.remotes import helpers
from prefect_dist.remotes.helpers import HelperCredentials, HelperName, Helpers, is_name
from tests.peers.processes import poll_until
from tests.remotes.asking import check_message

SECRET = "hunter2hunter2"
SERVER = "registry.example:5000"
ONE = HelperName("one")
TWO = HelperName("two")
UNKNOWN = "echo 'credentials not found in native keychain'; exit 1"
HASTY_S = 0.3


def knows(username: str, secret: str) -> str:
    """The body of a program that prints these credentials."""
    answer = json.dumps({"ServerURL": SERVER, "Username": username, "Secret": secret})
    return f"cat <<'END'\n{answer}\nEND"


class Programs:
    """Shell scripts `docker-credential-NAME` in a directory, which record their calls."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._log = directory / "log"

    def install(self, name: str, body: str) -> None:
        self.write(name, f'#!/bin/sh\nserver=$(cat)\necho "{name} $* $server" >> {self._log}\n{body}\n')

    def write(self, name: str, text: str, *, mode: int = 0o755) -> None:
        path = self.directory / f"docker-credential-{name}"
        path.write_text(text)
        path.chmod(mode)

    @property
    def calls(self) -> list[str]:
        """Every call as "NAME get SERVER"."""
        return self._log.read_text().splitlines() if self._log.exists() else []


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory), prepend=os.pathsep)
    return Programs(directory)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (knows("me", SECRET), HelperCredentials(username="me", secret=SECRET)),
        (knows("<token>", SECRET), HelperCredentials(username="<token>", secret=SECRET)),
        (knows("m\xfc", "\u2713 \" '"), HelperCredentials(username="m\xfc", secret="\u2713 \" '")),
        (knows("", SECRET), HelperCredentials(username="", secret=SECRET)),
        (knows("me", SECRET * 3000), HelperCredentials(username="me", secret=SECRET * 3000)),
        ("sleep 5 >/dev/null &\n" + knows("me", SECRET), HelperCredentials(username="me", secret=SECRET)),
        (knows("me", ""), None),
        ("echo '{}'", None),
        (UNKNOWN, None),
        ("printf 'credentials not found in native keychain'", None),
    ],
    ids=range(10),
)
def test_the_output_of_a_helper_becomes_credentials(programs: Programs, body: str, expected: HelperCredentials | None) -> None:
    programs.install("one", body)
    assert Helpers(timeout_s=60).get(ONE, SERVER) == expected
    assert programs.calls == [f"one get {SERVER}"]


def test_a_helper_may_exit_without_reading_its_input(programs: Programs) -> None:
    programs.write("one", f"#!/bin/sh\nexec 0<&-\n{knows('me', SECRET)}\n")
    assert Helpers().get(ONE, SERVER) == HelperCredentials(username="me", secret=SECRET)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (knows("me", SECRET) + "\nexit 1", "failed with exit status 1"),
        (f"echo 'credentials of {SECRET} not found in native keychain'; exit 2", "failed with exit status 2"),
        (f"echo {SECRET} >&2; exit 3", "failed with exit status 3"),
        ("kill -9 $$", "failed with exit status -9"),
        ("exit 0", "printed something other than JSON"),
        (f"echo {SECRET}", "printed something other than JSON"),
        (f'echo \'{{"Username": "me", "Secret": "{SECRET}\'', "printed something other than JSON"),
        (f"printf '\"\\377{SECRET}\"'", "printed something other than JSON"),
        (f"echo '[\"{SECRET}\"]'", "printed no strings Username and Secret"),
        (f'echo \'{{"Secret": "{SECRET}"}}\'', "printed no strings Username and Secret"),
        (f'echo \'{{"Username": "{SECRET}"}}\'', "printed no strings Username and Secret"),
        (f'echo \'{{"Username": "me", "Secret": ["{SECRET}"]}}\'', "printed no strings Username and Secret"),
        ("head -c 5000000 /dev/zero", "printed more than 65536 bytes"),
        (f"trap '' PIPE; while :; do echo {SECRET} 2>/dev/null; done", "printed more than 65536 bytes"),
    ],
    ids=range(14),
)
def test_each_failure_of_a_helper_is_reported(
    programs: Programs, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], body: str, message: str
) -> None:
    caplog.set_level(logging.DEBUG)
    programs.install("one", body)
    helpers = Helpers(timeout_s=60)
    for _ in range(3):
        with pytest.raises(Denied) as caught:
            helpers.get(ONE, SERVER)
        check_message(caught.value, SERVER, "docker-credential-one", message, hides=[SECRET])
    assert programs.calls == [f"one get {SERVER}"]
    assert SECRET not in caplog.text
    assert SECRET not in "".join(capfd.readouterr())


@pytest.mark.parametrize("body", ["sleep 60", f"printf {SECRET}; sleep 60", "exec >&-; sleep 60", "sleep 60 &"])
def test_a_hanging_helper_is_killed_with_its_children(programs: Programs, tmp_path: Path, body: str) -> None:
    programs.install("one", body.replace("sleep 60", f"sh -c 'echo $$ > {tmp_path}/child; exec sleep 60'"))
    helpers = Helpers(timeout_s=HASTY_S)
    for _ in range(2):
        with pytest.raises(Denied) as caught:
            helpers.get(ONE, SERVER)
        check_message(caught.value, SERVER, "docker-credential-one", "did not finish within 0.3 s", hides=[SECRET])
    assert len(programs.calls) <= 1  # a slow machine may not have started it yet
    if (child := tmp_path / "child").exists() and (pid := child.read_text().strip()):
        assert poll_until(lambda: has_ended(pid), timeout_s=10)


def has_ended(pid: str) -> bool:
    """Return True for a process that exited, also if it is a zombie because no parent collects it."""
    try:
        return re.search(r"\) [ZX] ", Path(f"/proc/{pid}/stat").read_text()) is not None
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_missing_helper_is_reported(programs: Programs) -> None:
    programs.write("two", "#!/bin/sh\n", mode=0o644)
    for name in (ONE, TWO):
        with pytest.raises(Denied) as caught:
            Helpers().get(name, SERVER)
        check_message(caught.value, SERVER, f"docker-credential-{name} is not on PATH")


def test_a_helper_that_cannot_be_started_is_reported(programs: Programs) -> None:
    programs.write("one", "\x7fELF")
    with pytest.raises(Denied) as caught:
        Helpers().get(ONE, SERVER)
    check_message(caught.value, SERVER, "docker-credential-one cannot be started (Exec format error)")


def test_many_threads_run_a_helper_once_for_each_server(programs: Programs) -> None:
    programs.install("one", knows("me", SECRET))
    programs.install("two", UNKNOWN)
    helpers = Helpers()
    questions = [(ONE, "a.example"), (ONE, "b.example"), (TWO, "a.example")] * 8
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda question: helpers.get(*question), questions))
    me = HelperCredentials(username="me", secret=SECRET)
    assert answers == [me, me, None] * 8
    assert sorted(programs.calls) == ["one get a.example", "one get b.example", "two get a.example"]


def test_a_helper_does_not_delay_requests_for_other_servers(programs: Programs, tmp_path: Path) -> None:
    os.mkfifo(held := tmp_path / "held")
    programs.install("one", f"cat {held}\n{UNKNOWN}")
    programs.install("two", UNKNOWN)
    helpers = Helpers()
    with ThreadPoolExecutor(2) as pool:
        slow = [pool.submit(helpers.get, ONE, SERVER) for _ in range(2)]
        with held.open("w"):  # waits until the program reads, which then waits for this end
            assert helpers.get(TWO, SERVER) is None
            assert not any(future.done() for future in slow)
        assert [future.result() for future in slow] == [None, None]
    assert programs.calls == [f"one get {SERVER}", f"two get {SERVER}"]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt, even if the tests were started in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_kills_the_helper_and_stores_no_answer(programs: Programs) -> None:
    programs.install("one", "kill -INT $PPID; sleep 60")
    helpers = Helpers(timeout_s=60)
    with pytest.raises(KeyboardInterrupt):
        helpers.get(ONE, SERVER)
    programs.install("one", knows("me", SECRET))
    assert helpers.get(ONE, SERVER) == HelperCredentials(username="me", secret=SECRET)


def test_no_representation_shows_a_secret(programs: Programs, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    programs.install("one", knows("me", SECRET))
    helpers = Helpers()
    answer = helpers.get(ONE, SERVER)
    assert answer is not None
    assert SECRET not in f"{answer!r} {answer} {helpers!r} {helpers}"
    assert SECRET not in caplog.text
    assert f"running docker-credential-one for {SERVER}" in caplog.text


@pytest.mark.parametrize("name", ["pass", "ecr-login", "desktop.exe", "osxkeychain", "a", "1password", "a" * 64])
def test_valid_helper_names_are_accepted(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "../a", "a\\b", "-a", " ", "a\n", "a;b", "$a", "\xfc", "a" * 65])
def test_invalid_helper_names_are_rejected(name: str) -> None:
    assert not is_name(name)


@given(st.text())
def test_a_helper_name_never_contains_a_path(text: str) -> None:
    assert is_name(text) == (re.fullmatch(r"[A-Za-z0-9][-A-Za-z0-9._]*", text) is not None and len(text) <= 64)
    if is_name(text):
        assert Path(f"docker-credential-{text}").name == f"docker-credential-{text}"
        assert shutil.which(f"docker-credential-{text}", path="/nowhere") is None


QUESTION = helpers._HelperRequest(helper=ONE, server=SERVER)


@given(st.binary(max_size=60) | st.from_regex(rb'\{"Username": ?"[a-z]*", "Secret": ?"?[a-z]*"?\}'), st.integers(-15, 3))
def test_any_output_is_parsed_or_reported(raw: bytes, status: int) -> None:
    try:
        answer = helpers._parse_output(QUESTION, status, raw)
    except Denied as exc:
        check_message(exc, SERVER, "docker-credential-one")
    else:
        assert answer is None or (status == 0 and answer.secret)


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_user_and_secret_survive_the_protocol(username: str, secret: str) -> None:
    raw = json.dumps({"Username": username, "Secret": secret, "ServerURL": SERVER}).encode()
    assert helpers._parse_output(QUESTION, 0, raw + b"\n") == HelperCredentials(username=username, secret=secret)
