"""Credentials for registries: from the files and helpers of docker, podman and skopeo, or given by the caller.

Follows containers-auth.json(5) of containers/image 5.36 and `cli/config` of docker/cli 28. Running helpers is left to
`remotes.helpers`, using credentials to `remotes.auth`.
"""

import base64
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from posixpath import expanduser
from typing import Any, Self, TypeAlias, TypeVar

import orjson

from prefect_dist.ocispec.errors import Denied, InvalidInput
from prefect_dist.ocispec.reference import find_scheme
from prefect_dist.ocispec.schemes import LAYOUT
from prefect_dist.remotes.errors import CredentialsRefused, Exchange, one_line
from prefect_dist.remotes.helpers import HelperCredentials, HelperName, Helpers, is_name

_log = logging.getLogger(__name__)
# Docker Hub has several names for one account: the host name in references, and the URL that `docker login` writes.
_HUB = "docker.io"
_HUB_SERVER = "https://index.docker.io/v1/"
_HUB_NAMES = frozenset({_HUB, _HUB_SERVER, "index.docker.io", "registry-1.docker.io"})
# The folder of podman's files per user if XDG_RUNTIME_DIR is not set, as for root.
_RUN = Path("/run/containers")
_DOCKER_FILE = "config.json"
# A helper that returns this user name returns an identity token as the secret.
_TOKEN_USER = "<token>"  # noqa: S105 - no password

T = TypeVar("T")


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Origin:
    """The source of credentials and the remedy if they are rejected, for messages. Neither is secret."""

    place: str
    remedy: str


_CALLER = Origin("the caller", "use other credentials")


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Credentials:
    """A user and a password or access token, an identity token, or both. No representation shows a secret.

    An identity token is an OAuth2 refresh token: a token server accepts it in place of user and password, a registry does not.
    `renew` returns other credentials after a rejection, or None; only credentials from a helper have `renew`. `origin` and
    `renew` do not count for equality.
    """

    username: str
    password: str = field(repr=False)
    identity_token: str | None = field(default=None, repr=False)
    origin: Origin = field(default=_CALLER, compare=False)
    renew: "Callable[[], Credentials | None] | None" = field(default=None, repr=False, compare=False)

    @property
    def description(self) -> str:
        """Kind, user and source of the credentials, without the secret: `the password of user 'me' (from PLACE)`."""
        what = "password" if self.has_password else "identity token"
        whose = f" of user {one_line(self.username)!r}" if self.username else ""
        return f"the {what}{whose} (from {self.origin.place})"

    @property
    def has_password(self) -> bool:
        """True if `basic` has a password. An empty password counts, unless there is an identity token."""
        return bool(self.password or not self.identity_token)

    def basic(self) -> str:
        """Return the value of an Authorization header (RFC 7617).

        Raises:
            Denied: there is an identity token and no password; check `has_password` first.
        """
        if not self.has_password:
            raise Denied("expected a password for basic authentication, got an identity token; log in with a password")
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


CredentialSource: TypeAlias = Callable[[str, str], Credentials | None]
"""Returns the credentials for (host, repository), both as in references; None if it has none. Thread-safe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryLogin:
    """The credentials for a registry, or None, and hints for the user, which contain no secret.

    `ways` are ways to give credentials besides the files of docker and podman, such as "give --username and --password-stdin".
    """

    host: str
    credentials: Credentials | None = None
    ways: Sequence[str] = ()

    @property
    def advice(self) -> str:
        """Hint for messages if the registry denies access."""
        if self.credentials is not None:
            return f"{self.credentials.description} gives no access; grant this user access, or use other credentials"
        *most, last = (*self.ways, f"log in with {login_commands(self.host)}")
        return f"{', '.join(most)}, or {last}" if most else last

    def refusal(self, credentials: Credentials, exchange: Exchange, *, by: str = "") -> CredentialsRefused:
        """Return the error for wrong credentials. `by` names the server that rejected them, if not the registry."""
        answer = f"{by}: {exchange.answer}" if by else exchange.answer
        message = f"{self.host}: {credentials.description} was rejected; {credentials.origin.remedy} ({answer})"
        return CredentialsRefused(message, exchange)


def chain_sources(*sources: CredentialSource) -> CredentialSource:
    """Return a source that tries `sources` in order and stops at the first credentials."""

    def get(host: str, repository: str) -> Credentials | None:
        answers = (source(host, repository) for source in sources)
        return next((found for found in answers if found is not None), None)

    return get


class StaticCredentials:
    """Credentials given by the caller, for `host` or, more narrowly, `host/namespace`. Thread-safe."""

    def __init__(self, credentials: Mapping[str, Credentials]) -> None:
        self._credentials = _normalize_keys(credentials)

    def get(self, host: str, repository: str = "") -> Credentials | None:
        """Return the credentials of the longest key that is a prefix of host and repository; None if there are none."""
        return _first_present(_keys(host, repository), self._credentials)


class DockerConfig:
    """Credentials in the files of docker, podman and skopeo, and from their helpers. Thread-safe."""

    def __init__(self, files: Sequence["_File"], helpers: Helpers) -> None:
        self._files, self._helpers = files, helpers

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ, *, helper_timeout_s: float = 30) -> Self:
        """Read the file `$REGISTRY_AUTH_FILE` or, without it, podman's two files and docker's. No helper is run.

        Missing files count as empty. A missing `$REGISTRY_AUTH_FILE` causes a warning only, since public images need no login.
        (podman fails, skopeo is silent; skopeo's own image sets the variable to a file that exists only after a login.)

        Raises:
            InvalidInput: a file is damaged. The message names the file and the key, and omits the content.
        """
        files = [file for path in _paths(environ) if (file := _load(path)) is not None]
        if not files and (named := environ.get("REGISTRY_AUTH_FILE")):
            _log.warning("REGISTRY_AUTH_FILE: the file %s does not exist, so no credentials are read from files", named)
        return cls(files, Helpers(timeout_s=helper_timeout_s))

    def get(self, host: str, repository: str = "") -> Credentials | None:
        """Return the credentials of the longest key that begins host and repository, in the first file with such a key.

        Raises:
            Denied: a helper fails, see `Helpers.get`.
        """
        keys = _keys(host, repository)
        answers = (self._resolve(file.find(keys)) for file in self._files)
        return next((found for found in answers if found is not None), None)

    def _resolve(self, found: "Credentials | _Helper | None") -> Credentials | None:
        if not isinstance(found, _Helper):
            return found
        return self._credentials_of(found, self._helpers.get(found.name, found.server))

    def _credentials_of(self, helper: "_Helper", answer: HelperCredentials | None) -> Credentials | None:
        if answer is None:
            return None
        is_token = answer.username == _TOKEN_USER
        return Credentials(
            "" if is_token else answer.username,
            "" if is_token else answer.secret,
            identity_token=answer.secret if is_token else None,
            origin=helper.origin,
            renew=partial(self._renew, helper, answer),
        )

    def _renew(self, helper: "_Helper", refused: HelperCredentials) -> Credentials | None:
        return self._credentials_of(helper, self._helpers.get_another(helper.name, helper.server, refused))


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class _Helper:
    """A helper, the server name to request, and the place in a file with the name of the helper."""

    name: HelperName
    server: str
    at: str

    @property
    def origin(self) -> Origin:
        server = _HUB if self.server in _HUB_NAMES else self.server
        return Origin(f"docker-credential-{self.name}, named in {self.at}", f"log in again with {login_commands(server)}")


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class _File:
    """One file, with normalized keys.

    None marks an entry without secrets, and a registry for which helpers are disabled.
    """

    path: Path
    auths: Mapping[str, Credentials | None]
    helpers: Mapping[str, _Helper | None]
    store: HelperName | None

    def find(self, keys: Sequence[str]) -> Credentials | _Helper | None:
        """Return the entry for the first matching key: from credHelpers, else from auths, else from credsStore.

        Other tools differ: podman ignores credsStore, and docker ignores auths if there is a credsStore. A file with both
        belongs to a user who logged in before docker used the store; the entry in auths is good, and needs no program.
        """
        if helper := _first_present(keys, self.helpers):
            return helper
        entry = _first_present(keys, self.auths)
        host = keys[-1]
        if entry is not None or self.store is None or any(key in self.helpers for key in keys) or find_scheme(f"{host}/"):
            return entry  # a helper knows servers: a locator with a scheme is no server
        return _Helper(name=self.store, server=_HUB_SERVER if host == _HUB else host, at=f"{self.path}: credsStore")


def login_commands(host: str, *tools: str) -> str:
    """Return the commands to log in at a registry, with docker or podman by default."""
    return " or ".join(f"'{tool} login {host}'" for tool in tools or ("docker", "podman"))


def _first_present(keys: Sequence[str], found: Mapping[str, T]) -> T | None:
    """Return the value of the first key that exists, even if the value is None."""
    return next((found[key] for key in keys if key in found), None)


def _keys(host: str, repository: str) -> tuple[str, ...]:
    """Return the keys for a repository: the full name, then shorter prefixes, finally only the host."""
    path = repository.split("/") if repository else []
    return tuple("/".join((_normalize_key(host), *path[:length])) for length in range(len(path), -1, -1))


def _normalize_key(key: str) -> str:
    """Return a key in the form `host[/namespace]`. Old clients wrote URLs, whose path belongs to the registry API."""
    # key ::= host { "/" component } | [ "oci:" ] protocol "://" [ user "@" ] host [ "/" path ]
    # The key of a plug-in, such as `pin:https://host/path`, stays: a plug-in must not get the credentials of the host.
    if "://" in key and ":" not in key.partition("://")[0].removeprefix(f"{LAYOUT}:"):
        key = key.partition("://")[2].partition("/")[0].rpartition("@")[2]
    host, slash, path = key.rstrip("/").partition("/")
    return f"{_HUB if host in _HUB_NAMES else host}{slash}{path}"


def _normalize_keys(entries: Mapping[str, T | None]) -> dict[str, T | None]:
    """Return the entries by normalized key.

    If several keys become equal, an entry with a value wins, then a key that was already normalized, then docker's key.
    """
    found: dict[str, T | None] = {}
    for key in sorted(entries, key=lambda key: (entries[key] is None, key != _normalize_key(key), key != _HUB_SERVER)):
        found.setdefault(_normalize_key(key), entries[key])
    return found


def _paths(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield the paths of the files, in the order in which they are read."""
    if only := environ.get("REGISTRY_AUTH_FILE"):
        yield Path(only)
        return
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime, "containers", "auth.json")
    elif os.access(own := _RUN / str(os.getuid()), os.X_OK):  # _RUN may be accessible only to root
        yield own / "auth.json"
    for variable, default, file in (
        ("XDG_CONFIG_HOME", "~/.config", Path("containers", "auth.json")),
        ("DOCKER_CONFIG", "~/.docker", Path(_DOCKER_FILE)),
    ):
        folder = environ.get(variable) or expanduser(default)
        if folder != default:  # otherwise the user has no home
            yield Path(folder, file)


def _load(path: Path) -> _File | None:
    try:
        document = orjson.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise InvalidInput(f"{path}: cannot read the file: {exc.strerror}") from exc
    except orjson.JSONDecodeError:
        raise InvalidInput(f"{path}: expected JSON") from None  # the parser's error quotes the text, which has passwords
    if not isinstance(document, dict):
        raise InvalidInput(f"{path}: expected a JSON object with the key auths")
    return _File(
        path=path,
        auths=_auths(_object(document.get("auths"), f"{path}: auths"), path),
        helpers=_helpers(_object(document.get("credHelpers"), f"{path}: credHelpers"), f"{path}: credHelpers"),
        store=_helper_name(document.get("credsStore"), f"{path}: credsStore"),
    )


def _auths(document: Mapping[str, Any], path: Path) -> dict[str, Credentials | None]:
    found = {}
    for key, value in document.items():
        origin = Origin(_key_place(f"{path}: auths", key), f"log in again with {_relogin_command(key, path)}")
        found[key] = _credentials(_object(value, origin.place), origin)
    return _normalize_keys(found)


def _relogin_command(key: str, path: Path) -> str:
    """Return the command that replaces an entry.

    docker login works only for entries of docker's file without a namespace; podman login writes a file that takes precedence.
    """
    bare = _normalize_key(key)
    return login_commands(_hide_user_info(bare), "docker" if path.name == _DOCKER_FILE and "/" not in bare else "podman")


def _helpers(document: Mapping[str, Any], at: str) -> dict[str, _Helper | None]:
    found: dict[str, _Helper | None] = {}
    for key, value in document.items():
        name = _helper_name(value, _key_place(at, key))
        # Each tool has its own key for Docker Hub, and stores the credentials in the helper under that key.
        server = key if key in _HUB_NAMES else _normalize_key(key).partition("/")[0]
        found[key] = _Helper(name=name, server=server, at=_key_place(at, key)) if name else None
    return _normalize_keys(found)


def _credentials(entry: Mapping[str, Any], origin: Origin) -> Credentials | None:
    """Return the credentials of an entry; None for an entry without secrets, which are then in a credential helper."""
    at = origin.place
    texts = {name: _text(entry.get(name), _key_place(at, name)) for name in ("username", "password", "auth", "identitytoken")}
    token = texts["identitytoken"] or None
    if texts["username"] and texts["password"]:
        return Credentials(texts["username"], texts["password"], token, origin)
    if texts["auth"]:
        return Credentials(*_decode_auth(texts["auth"], _key_place(at, "auth")), token, origin)
    return Credentials(texts["username"], "", token, origin) if token else None


def _decode_auth(text: str, at: str) -> tuple[str, str]:
    try:
        user, colon, password = base64.b64decode(text, validate=True).decode().partition(":")
    except ValueError:  # not base64, not ASCII, not UTF-8
        raise InvalidInput(f"{at}: expected base64 of user:password") from None
    if not colon:
        raise InvalidInput(f"{at}: expected base64 of user:password")
    return user, password.rstrip("\0")


# Unlike the readers of `ocispec.fields`, these readers omit the rejected value from their errors: it may be a secret.


def _object(value: Any, at: str) -> Mapping[str, Any]:
    """Return an object; an empty one for a missing or null value."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidInput(f"{at}: expected an object")
    return value


def _text(value: Any, at: str) -> str:
    """Return a string; an empty one for a missing or null value."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidInput(f"{at}: expected a string")
    return value


def _helper_name(value: Any, at: str) -> HelperName | None:
    """Return the name of a helper; None for a missing, null or empty value."""
    text = _text(value, at)
    if text and not is_name(text):
        raise InvalidInput(f"{at}: expected the NAME of a program docker-credential-NAME")
    return HelperName(text) if text else None


def _key_place(at: str, key: str) -> str:
    return f"{at}.{_hide_user_info(key)}"


def _hide_user_info(key: str) -> str:
    """Return a key for messages: a URL may have a password before its host."""
    return one_line(key.rpartition("@")[2])
