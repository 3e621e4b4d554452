"""Who we are to the registry of the images that a command names: user and password by hand, never on the command line."""

import os
from collections.abc import Container, Iterable

from prefect_dist.cli.errors import BadInput
from prefect_dist.cli.options import LoginOptions
from prefect_dist.remotes import Credentials, CredentialSource, Origin, StaticCredentials

WAY = "give --username and --password-stdin"
_LONGEST_BYTES = 64 * 1024  # some tokens are long; nobody types more


def given(login: LoginOptions, registries: Iterable[str]) -> CredentialSource:
    """The credentials that were given by hand, which are for one registry, `host[:port]`; none where none were."""
    username = login.username if login.username is not None else os.environ.get("DIST_USERNAME")
    if not username:
        if login.password_stdin:
            raise BadInput("--password-stdin requires --username")
        return StaticCredentials({}).get
    hosts = sorted(set(registries))
    if len(hosts) != 1:
        found = ", ".join(hosts) or "none that is known before the run"
        raise BadInput(
            f"user {username}: expected one registry to log in to, got {found}; use docker login or the configuration"
        )
    user = "$DIST_USERNAME" if login.username is None else "--username"
    password = "--password-stdin" if login.password_stdin else "$DIST_PASSWORD"
    origin = Origin(f"{user} and {password}", "give the right ones")
    return StaticCredentials(dict.fromkeys(hosts, Credentials(username, _password(username, login), origin=origin))).get


def given_for_targets(login: LoginOptions, registries: Iterable[str], *, configured: Container[str]) -> CredentialSource:
    """The credentials that were given by hand for the one registry that a command writes to.

    Those of the environment are used only where the configuration has none: it has credentials for `configured` registries.
    """
    hosts = set(registries)
    if login.username is None and not login.password_stdin:
        hosts = {host for host in hosts if host not in configured}
        if len(hosts) != 1:
            return StaticCredentials({}).get
    return given(login, hosts)


def _password(username: str, login: LoginOptions) -> str:
    if login.password_stdin:
        return _type_password(username) if os.isatty(0) else _text(_read_piped(), "--password-stdin")
    if not (given := os.environb.get(b"DIST_PASSWORD")):
        raise BadInput(f"user {username}: no password; give it to standard input with --password-stdin, or in DIST_PASSWORD")
    return _text(given, "DIST_PASSWORD")


def _type_password(username: str) -> str:
    """A password from the terminal, which does not show it."""
    from getpass import getpass

    try:
        return _text(getpass(f"password of {username}: ").encode(errors="surrogateescape"), "--password-stdin")
    except EOFError:
        return _text(b"", "--password-stdin")


def _read_piped() -> bytes:
    """All of standard input, without the line break at its end."""
    try:
        with open(0, "rb", closefd=False) as stdin:
            return stdin.read(_LONGEST_BYTES + 1).removesuffix(b"\n").removesuffix(b"\r")
    except OSError as exc:
        raise BadInput(f"--password-stdin: standard input cannot be read ({exc.strerror})") from exc


def _text(given: bytes, origin: str) -> str:
    """What was given, as text. Of what is refused nothing is shown: it may be a password and something else."""
    if not given:
        raise BadInput(f"{origin}: expected a password, got nothing")
    if len(given) > _LONGEST_BYTES:
        raise BadInput(f"{origin}: expected a password, got more than {_LONGEST_BYTES} bytes")
    if lines := given.count(b"\n"):
        raise BadInput(f"{origin}: expected a password in one line, got {lines + 1} lines")
    try:
        text = given.decode()
    except UnicodeDecodeError:
        raise BadInput(f"{origin}: expected a password in UTF-8, got other bytes") from None
    if any(c < " " or c == "\x7f" for c in text):  # RFC 7617, section 2
        raise BadInput(f"{origin}: expected a password without control characters, got some")
    return text
