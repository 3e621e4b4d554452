"""Options of a store's file system, in the form that people write: `endpoint_url=…`, `client_kwargs.region_name=eu-west-1`.

Options configure the location and the client, never the credentials. Credentials come from the environment, from the
configuration files of the service's own tools, or from a Prefect block. A secret in an option would appear in process lists and
in the parameters of runs.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from prefect_dist.ocispec.errors import InvalidInput

# Names of secret options: `key`, `account_key`, `sas_token`, `aws_secret_access_key` and similar. `SSEKMSKeyId` is not a secret
# but an identifier.
_SECRET = re.compile(
    r".*(?:key|secret.*|token.*|password.*|passphrase.*|passwd|credential.*|connection_string|authorization|cookies?)"
    r"|(?:.*[_.-])?(?:pass|pwd|sas|auth)",
    re.IGNORECASE,
)
# Values of secret options: those of authorization headers.
_SECRET_VALUE = re.compile(r"(?:basic|bearer)\s+\S", re.IGNORECASE)
_PAIR = 2
# In gcsfs, `token` may also select a login method.
_NO_SECRETS = {"token": frozenset({"google_default", "cache", "anon", "browser", "cloud"})}
_USERINFO = re.compile(r"[a-z0-9+.-]+://[^/]*@", re.IGNORECASE)


def parse(texts: Iterable[str]) -> dict[str, Any]:
    """Return nested options from `name.name=value` texts. A value that is valid JSON is parsed, any other value is a string.

    Raises:
        InvalidInput: another form, a name with both a value and nested options, or a secret.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        *path, last = name.split(".")
        if not equals or not all((*path, last)):
            raise InvalidInput(f"store option {name!r}: expected name=value, such as endpoint_url=https://s3.example.com")
        place = options
        for step in path:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise InvalidInput(f"store option {name}: {step} already has a single value, so it cannot have nested options")
        place[last] = _value(value)
    refuse_secrets(options)
    return options


def refuse_secrets(options: Mapping[str, Any], *, at: str = "") -> None:
    """Check that no option is a secret.

    Raises:
        InvalidInput: an option may be a secret. The message contains the name, not the value.
    """
    for name, value in options.items():
        if is_secret(name, value) or (isinstance(value, list) and _has_secret(value)):
            where = "the environment, the configuration files of the service's own tools, or a Prefect block"
            raise InvalidInput(f"store option {at}{name}: options must not contain secrets; use {where}")
        if isinstance(value, Mapping):
            refuse_secrets(value, at=f"{at}{name}.")


def is_secret(name: str, value: object) -> bool:
    """Return True if an option may be a secret: by its name, as a URL with a password, or as the value of a header."""
    if isinstance(value, str) and (has_userinfo(value) or _SECRET_VALUE.match(value)):
        return True
    return _SECRET.fullmatch(str(name)) is not None and not (isinstance(value, str) and value in _NO_SECRETS.get(name, ()))


def _has_secret(value: object) -> bool:
    """Return True if a list contains a secret at any depth, as an item or as a pair of name and value."""
    if isinstance(value, Mapping):
        return any(is_secret(name, inner) or _has_secret(inner) for name, inner in value.items())
    if not isinstance(value, list):
        return is_secret("", value)
    is_pair = len(value) == _PAIR and isinstance(value[0], str)
    return (is_pair and is_secret(value[0], value[1])) or any(_has_secret(item) for item in value)


def has_userinfo(value: object) -> bool:
    """Return True for a URL with a user or password."""
    return isinstance(value, str) and _USERINFO.match(value) is not None


def merge_options(known: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return both options merged. `more` wins, also within nested options such as `client_kwargs`."""
    both = (key for key in known.keys() & more.keys() if isinstance(known[key], Mapping) and isinstance(more[key], Mapping))
    return {**known, **more, **{key: merge_options(known[key], more[key]) for key in both}}


def refuse_flat(options: Mapping[str, Any]) -> None:
    """Check that options with nested options, such as fsspec's `client_kwargs`, do not have a single value.

    Raises:
        InvalidInput: such an option has a single value. The message contains the name, not the value.
    """
    for name, value in options.items():
        if name.endswith("_kwargs") and not isinstance(value, Mapping):
            raise InvalidInput(f"store option {name}: expected nested options as {name}.NAME=VALUE, got a single value")


def refuse_userinfo(url: str) -> None:
    """Check that a URL has no user and password.

    Raises:
        InvalidInput: the URL has a user or password; the message does not contain them.
    """
    if _USERINFO.match(url):
        protocol, _, rest = url.partition("://")
        shown = f"{protocol}://…@{rest.rpartition('@')[2]}"
        raise InvalidInput(f"store {shown}: remove user and password from the location; use the environment or a Prefect block")


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
