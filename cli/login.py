"""Credentials from the options and the environment of a command. A password is never on the command line."""

import os
from collections.abc import Container, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from prefect_dist.cli import inputs
from prefect_dist.cli.inputs import BadInput
from prefect_dist.cli.options import Context, LoginOptions, NetworkOptions

if TYPE_CHECKING:
    from prefect_dist.remotes import CredentialSource, Remotes

_WAY = "give --username and --password-stdin"
_MAX_BYTES = 64 * 1024  # some tokens are long


def use_login(login: LoginOptions, registries: Iterable[str]) -> AbstractContextManager[None]:
    """Make runs in the block use the credentials of the user for the registry of the command."""
    from prefect_dist.transfer.session import use_credentials

    return use_credentials(_make_source(login, registries), way=_WAY)


def use_target_login(
    login: LoginOptions, registries: Iterable[str], *, configured: Container[str] = (), is_mentioned: bool = True
) -> AbstractContextManager[None]:
    """Make runs in the block use the credentials of the user for the target registry of the command.

    Credentials of the environment are not used for the registries in `configured`, which have credentials in the configuration.
    `is_mentioned` decides if messages about missing credentials mention the options.
    """
    from prefect_dist.remotes import StaticCredentials
    from prefect_dist.transfer.session import use_credentials

    hosts, way = set(registries), _WAY if is_mentioned else None
    if login.username is None and not login.password_stdin:
        hosts = {host for host in hosts if host not in configured}
        if len(hosts) != 1:
            return use_credentials(StaticCredentials({}).get, way=way)
    return use_credentials(_make_source(login, hosts), way=way)


def refuse_login(login: LoginOptions, why: str) -> None:
    """Refuse the credentials of the user for a command that cannot use them."""
    given = "--username" if login.username is not None else "$DIST_USERNAME" if os.environ.get("DIST_USERNAME") else None
    if given is not None:
        raise BadInput(f"{given}: {why}; set the credentials in the configuration, or use docker login")


def open_remotes(context: Context, network: NetworkOptions, login: LoginOptions, host: str) -> "Remotes":
    """Return the remotes for a command whose credentials are for the registry `host`. The caller closes the remotes."""
    from prefect_dist.remotes import DockerConfig, Registries, RegistrySettings, Remotes, chain_sources

    settings = RegistrySettings(
        hosts=inputs.load_hosts(network),
        connect_timeout_s=context.connect_timeout_s,
        read_timeout_s=network.read_timeout,
    )
    credentials = chain_sources(_make_source(login, [host]), DockerConfig.load().get)
    registries = Registries(settings, credentials=credentials, ways=(_WAY,))
    return Remotes(registries, credentials=credentials, open_store=lambda: inputs.open_store(context))


def _make_source(login: LoginOptions, registries: Iterable[str]) -> "CredentialSource":
    """Return the source of the credentials of the user. The source is empty without credentials."""
    from prefect_dist.remotes import Credentials, Origin, StaticCredentials

    username = login.username if login.username is not None else os.environ.get("DIST_USERNAME")
    if not username:
        if login.password_stdin:
            raise BadInput("--password-stdin requires --username or $DIST_USERNAME")
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
    return StaticCredentials(dict.fromkeys(hosts, Credentials(username, _read_password(username, login), origin=origin))).get


def _read_password(username: str, login: LoginOptions) -> str:
    if login.password_stdin:
        return _ask_password(username) if os.isatty(0) else _decode(_read_stdin(), "--password-stdin")
    if not (password := os.environb.get(b"DIST_PASSWORD")):
        raise BadInput(f"user {username}: no password; write it to standard input with --password-stdin, or set DIST_PASSWORD")
    return _decode(password, "DIST_PASSWORD")


def _ask_password(username: str) -> str:
    """Read a password from the terminal, which does not echo it."""
    from getpass import getpass

    try:
        return _decode(getpass(f"password of {username}: ").encode(errors="surrogateescape"), "--password-stdin")
    except EOFError:
        return _decode(b"", "--password-stdin")


def _read_stdin() -> bytes:
    """Return standard input without the last line break."""
    try:
        with open(0, "rb", closefd=False) as stdin:
            return stdin.read(_MAX_BYTES + 1).removesuffix(b"\n").removesuffix(b"\r")
    except OSError as exc:
        raise BadInput(f"--password-stdin: standard input cannot be read ({exc.strerror})") from exc


def _decode(password: bytes, origin: str) -> str:
    """Return the password as text. Messages never show refused bytes, which may contain a password."""
    if not password:
        raise BadInput(f"{origin}: expected a password, got nothing")
    if len(password) > _MAX_BYTES:
        raise BadInput(f"{origin}: expected a password, got more than {_MAX_BYTES} bytes")
    if lines := password.count(b"\n"):
        raise BadInput(f"{origin}: expected a password in one line, got {lines + 1} lines")
    try:
        text = password.decode()
    except UnicodeDecodeError:
        raise BadInput(f"{origin}: expected a password in UTF-8, got other bytes") from None
    if any(c < " " or c == "\x7f" for c in text):  # RFC 7617, section 2
        raise BadInput(f"{origin}: expected a password without control characters, got some")
    return text
