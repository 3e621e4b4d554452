"""Converts files of `skopeo sync --src yaml` (skopeo 1.22) into configurations of a mirror.

Such a file lists images, and skopeo's command line names the destination. As with skopeo, the name of an image below the
destination is the last component of its repository. A destination that is a template is the full name:
`registry.example/{{.Ref.Registry}}/{{.Ref.Repository}}` gives the names of `--scoped`.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, RootModel

from prefect_dist.mirror.naming import Naming
from prefect_dist.mirror.selection import compile_pattern
from prefect_dist.mirror.semver import Operator, Range, Version
from prefect_dist.mirror.validation import Flag, LenientSection, MistakeLog, Text, located, valid_by, validate
from prefect_dist.mirror.yamlfile import Document, Place
from prefect_dist.ocispec import Digest, Reference
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.ocispec.reference import expand
from prefect_dist.remotes import Tls
from prefect_dist.remotes.hosts import check_readable

# flags ::= "(?" letters ")"; Go's flags apply to the rest of the expression, Python's must be at its start
_FLAGS = re.compile(r"\(\?([a-zA-Z]+)\)(.*)", re.DOTALL)

# The constraints have the syntax of Masterminds' semver 3.5 for Go. It differs from regsync's ranges: `,` and blanks join
# comparisons, `||` separates alternatives, a partial version includes every version that starts with it, and a constraint
# includes prereleases only if it contains one.
# constraints ::= group { "||" group };  group ::= term { ["," ] term };  term ::= version " - " version | [ operator ] version
# version     ::= ["v"] part [ "." part [ "." part ] ] [ "-" prerelease ] [ "+" build ];  part ::= number | "x" | "X" | "*"
_PART = r"(?:[0-9]+|[xX*])"
_VERSION = rf"v?{_PART}(?:\.{_PART}){{0,2}}(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?"
_TERM = re.compile(rf"\s*(?:({_VERSION})\s+-\s+({_VERSION})|(=>|>=|=<|<=|~>|!=|[=<>~^])?\s*({_VERSION}))\s*(?:,|(?=\s|$))")
_SAME = {"=>": ">=", "=<": "<=", "~>": "~", "": "="}
_MOST_NUMBERS = 3
# The texts that NewVersion of Masterminds' semver accepts.
_TAG = r"v?[0-9]+(\.[0-9]+){0,2}"
_PRERELEASE = r"(-[0-9A-Za-z.-]+)?"

_WIDTH = 200

Filters = list[dict[str, list[str]]]
"""The sections `tags` or `tagSets` of an entry, each with its keys."""
_Comparison = tuple[Operator, Version]


def parse_constraint(text: str) -> Filters:
    """Return the filters for tags that a constraint allows, one for each alternative.

    Raises:
        InvalidInput: the constraint is invalid, or has `!=` before a partial version.
    """
    return [_parse_group(group, text) for group in text.split("||")]


class SkopeoLogin(LenientSection):
    """The credentials for a registry."""

    username: Text = Field(default="", repr=False)
    password: Text = Field(default="", repr=False)


class SkopeoRegistry(LenientSection):
    """The selected images of a registry, and its connection settings."""

    images: dict[str, list[Text] | None] = Field(default={})
    images_by_tag_regex: dict[str, Annotated[Text, valid_by(compile_pattern)]] = Field(default={}, alias="images-by-tag-regex")
    images_by_semver: dict[str, Annotated[Text, valid_by(parse_constraint)]] = Field(default={}, alias="images-by-semver")
    credentials: SkopeoLogin | None = Field(default=None, repr=False)
    tls_verify: Flag = Field(default=True, alias="tls-verify")
    cert_dir: Text | None = Field(default=None, alias="cert-dir")


class SkopeoFile(RootModel[dict[str, SkopeoRegistry]]):
    """A file of `skopeo sync`: registries by `host[:port]`."""


def convert_skopeo(document: Document, *, to: Sequence[str]) -> str:
    """Return the configuration, as YAML, of a mirror that copies the images of a skopeo file to each destination of `to`.

    The configuration has no passwords: it reads each one from an environment variable, which a comment at its top states.

    Raises:
        Mistakes: the file or a destination is invalid; each line names file, line and key of a mistake.
    """
    file, mistakes = validate(SkopeoFile, document), MistakeLog(document)
    entries: list[dict[str, Any]] = []
    registries: dict[str, dict[str, Any]] = {}
    comment = ""
    for name, registry in file.root.items():
        for selected in _list_selected(name, registry):
            entry = mistakes.attempt(partial(_make_entry, document, to, *selected))
            entries += [] if entry is None else [entry]
        settings = mistakes.attempt(partial(_make_connection, registry, (name, "cert-dir"), document)) or {}
        if (login := registry.credentials) is not None:
            variable = f"PASSWORD_{re.sub('[^A-Z0-9]+', '_', name.upper())}"
            comment += f"# {variable}: an environment variable with the password for {name}\n"
            settings |= {"user": login.username, "pass": f'{{{{env "{variable}"}}}}'}
        registries |= {name: settings} if settings else {}
    mistakes.raise_mistakes()
    content = {"registries": registries, "sync": entries} if registries else {"sync": entries}
    return comment + yaml.safe_dump(content, sort_keys=False, width=_WIDTH)


def _list_selected(registry: str, section: SkopeoRegistry) -> Iterator[tuple[str, Place, Filters | None]]:
    """Yield the selected images in skopeo's order: text, key in the file, and filters for tags; None for a single image."""
    for name, listed in section.images.items():
        place: Place = (registry, "images", name)
        if not listed:
            yield f"{registry}/{name}", place, []
        for number, text in enumerate(listed or ()):
            yield f"{registry}/{name}{'@' if Digest.is_valid(text) else ':'}{text}", (*place, number), None
    for name, regex in section.images_by_tag_regex.items():
        # skopeo's expression may match any part of a tag
        flags = _FLAGS.fullmatch(regex)
        pattern = f".*(?{flags[1]}:{flags[2]}).*" if flags else f".*(?:{regex}).*"
        yield f"{registry}/{name}", (registry, "images-by-tag-regex", name), [{"allow": [pattern]}]
    for name, constraint in section.images_by_semver.items():
        yield f"{registry}/{name}", (registry, "images-by-semver", name), parse_constraint(constraint)


def _make_entry(document: Document, to: Sequence[str], text: str, place: Place, filters: Filters | None) -> dict[str, Any]:
    with located(document.where(place)):
        source = Reference.parse(expand(text))
    targets = []
    for destination in to:
        target = destination if "{{" in destination else f"{destination.rstrip('/')}/{source.repository.rpartition('/')[2]}"
        Naming.read(target, at=f"destination {destination}", what="repository")
        targets.append(f"{target}{source.suffix}" if filters is None and ".Ref" not in target else target)
    return {
        "source": str(source) if filters is None else source.locator,
        **({"target": targets[0]} if len(targets) == 1 else {"targets": targets}),
        "type": "image" if filters is None else "repository",
        **({} if not filters else {"tags": filters[0]} if len(filters) == 1 else {"tagSets": filters}),
    }


def _make_connection(registry: SkopeoRegistry, place: Place, document: Document) -> dict[str, Any]:
    """Return the connection settings of a registry.

    A directory of certificates has the form of containers-certs.d(5): *.crt are CAs, *.cert and *.key the client's certificate.
    """
    settings: dict[str, Any] = {} if registry.tls_verify else {"tls": "insecure"}
    if registry.cert_dir is None:
        return settings
    folder = Path(document.resolve_path(registry.cert_dir, place))
    with located(document.where(place)):
        if not folder.is_dir():
            raise InvalidInput(f"{folder}: expected a directory of certificates")
        authorities, own = sorted(folder.glob("*.crt")), sorted(folder.glob("*.cert"))
        if len(authorities) > 1:
            raise InvalidInput(f"{folder}: expected one file *.crt, got {len(authorities)}; join them into one file")
        settings |= {"caFile": str(authorities[0])} if authorities else {}
        settings |= {"certFile": str(own[0]), "keyFile": str(own[0].with_suffix(".key"))} if own else {}
        for path in (settings.get(key) for key in ("caFile", "certFile", "keyFile")):
            if path is not None:
                check_readable(path)
        Tls(ca_file=settings.get("caFile")).context()
        Tls(cert_file=settings.get("certFile"), key_file=settings.get("keyFile")).context()
    return settings


def _parse_group(group: str, text: str) -> dict[str, list[str]]:
    comparisons: list[_Comparison] = []
    denied: list[str] = []
    place, prerelease = 0, False
    while place == 0 or group[place:].strip():
        match = _TERM.match(group, place)
        if match is None:
            raise InvalidInput(f"constraint {text!r}: expected versions after = != > < >= <= ~ ^, joined by , and ||")
        first, last, operator, version = match.groups()
        terms = [(">=", first), ("<=", last)] if first else [(operator or "", version)]
        for symbol, bound in terms:
            if symbol == "!=":
                denied.append(_match_version(_parse_version(bound), text))
            else:
                comparisons += _parse_comparisons(_SAME.get(symbol, symbol), _parse_version(bound), text)
            prerelease |= "-" in bound
        place = match.end()
    return {
        "allow": [f"{_TAG}{_PRERELEASE}" if prerelease else _TAG],
        **({"deny": denied} if denied else {}),
        **({"semverRange": [str(Range(comparisons=tuple(comparisons)))]} if comparisons else {}),
    }


def _parse_version(text: str) -> Version:
    """Return the numbers before the first wildcard, and the prerelease."""
    parts = re.split(r"[-+]", text.removeprefix("v"), maxsplit=1)[0].split(".")
    return Version(
        numbers=tuple(map(int, itertools.takewhile(str.isdigit, parts))), prerelease=text.partition("+")[0].partition("-")[2]
    )


def _parse_comparisons(operator: str, version: Version, text: str) -> list[_Comparison]:
    """Return the comparisons of a term. A partial version limits only the numbers that are present."""
    numbers = version.numbers
    count = len(numbers)
    whole = count == _MOST_NUMBERS
    found: list[_Comparison]
    match operator:
        case "=" | ">" | "<=" if whole:
            found = [(operator, version)]
        case ">=" | "<" if numbers:
            found = [(operator, version)]
        case ">=":
            found = []
        case "=":
            found = _limit(version, count)
        case "<=":
            found = _limit(version, count)[1:]
        case ">" if numbers:
            found = [(">=", _after(numbers))]
        case "~" if whole and not any(numbers):  # an exception of Masterminds' semver
            found = [(">=", version)]
        case "~":
            found = _limit(version, min(count, 2))
        case "^":
            found = _limit(version, next((place for place, number in enumerate(numbers, start=1) if number), count))
        case _:
            raise InvalidInput(f"constraint {text!r}: expected a number after {operator}")
    return found


def _limit(version: Version, length: int) -> list[_Comparison]:
    """Return the range of versions that start with the first `length` numbers; no comparison if `length` is 0."""
    return [(">=", version), ("<", _after(version.numbers[:length]))] if length else []


def _after(numbers: tuple[int, ...]) -> Version:
    """Return the least version with the last number plus one: a prerelease."""
    return Version(numbers=(*numbers[:-1], numbers[-1] + 1), prerelease="0")


def _match_version(version: Version, text: str) -> str:
    """Return a regular expression for the tags with this version: zeros at the end may be missing."""
    if len(version.numbers) < _MOST_NUMBERS:
        raise InvalidInput(f"constraint {text!r}: expected all three numbers after !=, got {version}")
    needed = max((place for place, number in enumerate(version.numbers, start=1) if number), default=1)
    numbers = r"\.".join(map(str, version.numbers[:needed]))
    prerelease = re.escape(f"-{version.prerelease}") if version.prerelease else ""
    return rf"v?{numbers}(\.0)*{prerelease}"
