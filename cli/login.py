"""Who we are to the registry of the images that a command names: user and password by hand, never on the command line."""

import os
import sys
from collections.abc import Iterable

from cli.errors import BadInput
from cli.options import Login
from remotes import Credentials, CredentialSource, Given

_LONGEST = 64 * 1024  # some tokens are long; nobody types more


def given(login: Login, registries: Iterable[str]) -> CredentialSource:
    """The credentials that were given by hand, which are for one registry, `host[:port]`; none where none were."""
    username = login.username if login.username is not None else os.environ.get("DIST_USERNAME")
    if not username:
        if login.password_stdin:
            raise BadInput("--password-stdin: whose? give --username, too")
        return Given({}).get
    hosts = sorted(set(registries))
    if len(hosts) > 1:
        raise BadInput(f"user {username}: expected images of one registry, got {', '.join(hosts)}; use docker login")
    return Given(dict.fromkeys(hosts, Credentials(username, _password(username, login)))).get


def _password(username: str, login: Login) -> str:
    if login.password_stdin:
        return sys.stdin.read(_LONGEST).removesuffix("\n").removesuffix("\r")
    if (password := os.environ.get("DIST_PASSWORD")) is None:
        raise BadInput(f"user {username}: no password; give it to standard input with --password-stdin, or in DIST_PASSWORD")
    return password
