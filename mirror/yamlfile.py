"""Reads YAML files together with the line of each value, so that a message can name the line of a mistake."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from posixpath import expanduser
from typing import Any

import yaml

from prefect_dist.ocispec.errors import InvalidInput, Unsupported
from prefect_dist.ocispec.reference import is_relative, make_absolute
from prefect_dist.storage.statefile import StateFile

# Limits above a configuration of 100,000 images. They stop files whose nested aliases expand without bound.
_MOST_BYTES = 16 * 1024 * 1024
_MOST_PLACES = 500_000
_DEEPEST = 64

Place = tuple[str | int, ...]


class Written:
    """A number with its text in the file, for places that expect text: the tag 3.10 is not the tag 3.1."""

    written: str


class _Int(Written, int):
    """A whole number."""


class _Float(Written, float):
    """A number."""


class _Loader(yaml.SafeLoader):
    """A loader for plain data. Dates are text, and so are `on` and `no`, as in YAML 1.2.

    The loader is slower than libyaml's, but libyaml crashes on a deeply nested file.
    """


def _number(kind: type[_Int | _Float], parsed: Callable[..., float]) -> Callable[..., Any]:
    def construct(loader: _Loader, node: yaml.ScalarNode) -> _Int | _Float:
        value = kind(parsed(loader, node))
        value.written = node.value
        return value

    return construct


def _as_text(_: _Loader, node: yaml.ScalarNode) -> str:
    return str(node.value)


_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [one for one in resolvers if one[0] != _BOOL] for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile("(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))  # YAML 1.2, 10.3.2
_Loader.add_constructor("tag:yaml.org,2002:int", _number(_Int, yaml.SafeLoader.construct_yaml_int))
_Loader.add_constructor("tag:yaml.org,2002:float", _number(_Float, yaml.SafeLoader.construct_yaml_float))
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _as_text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The content of a file: plain data, and the line of each place. `lines` is empty for data from options.

    `path` is a path or URL. If `is_file` is False, the document is a block or a parameter with `path` as its name, and each
    user of Prefect can read its text.
    """

    path: str
    data: Any
    lines: Mapping[Place, int]
    is_file: bool = True

    def where(self, place: Sequence[str | int]) -> str:
        """Return `file:line: key.path` for a place. A missing place has the line of the nearest place around it."""
        at = f"{self.path}:{self.line(place)}" if self.lines else self.path
        return f"{at}: {keys}" if (keys := _keys(place)) else at

    def line(self, place: Sequence[str | int]) -> int:
        """Return the line of a place, or of the nearest existing place around it."""
        return next(self.lines[known] for length in range(len(place), -1, -1) if (known := tuple(place[:length])) in self.lines)

    def resolve_path(self, path: str, place: Sequence[str | int]) -> str:
        """Return the absolute form of a path or URL. A relative path starts at the directory of the file.

        Raises:
            InvalidInput: the path is relative, and the document is no file; or the path starts with ~ and an unknown user.
        """
        expanded = Path(expanduser(path))
        if str(expanded).startswith("~"):
            reason = "check that the user after ~ exists"
            raise InvalidInput(f"expected a URL or a path, got {path}; {reason}", subject=self.where(place))
        if "://" in path or expanded.is_absolute():
            return path if "://" in path else str(expanded)
        self._require_directory(path, place)
        return f"{self.path.rpartition('/')[0]}/{path}" if "://" in self.path else str(Path(self.path).parent / expanded)

    def resolve_locator(self, text: str, place: Sequence[str | int]) -> str:
        """Return the text of a reference, with an absolute path if the text names a layout or an archive by a relative path.

        A relative path starts at the directory of the file.

        Raises:
            InvalidInput: the path is relative, and the document is no file.
        """
        if is_relative(text):
            self._require_directory(text, place)
        return resolve_locator(text, self.path)

    def _require_directory(self, path: str, place: Sequence[str | int]) -> None:
        """Reject a relative path in a document that is no file."""
        if not self.is_file:
            reason = "a block or a parameter has no directory for relative paths"
            raise InvalidInput(f"expected a URL or an absolute path, got {path}: {reason}", subject=self.where(place))

    def refuse_secret(self, text: str, place: Sequence[str | int]) -> None:
        """Reject a literal secret in a document that is no file, because Prefect stores such a document in plain text.

        Raises:
            InvalidInput: the text is no template; the message does not show the text.
        """
        if not self.is_file and "{{" not in text:
            form = 'expected {{env "NAME"}}, {{file "PATH"}} or a block, got a literal text'
            raise InvalidInput(
                f"{form}; Prefect stores it in plain text, so replace the secret, too", subject=self.where(place)
            )


def resolve_locator(text: str, file: str) -> str:
    """Return the text of a reference in the file at a path or URL, with an absolute path; see `make_absolute`.

    A relative path starts at the directory of the file. Links in the directory are resolved only for a path with `..`.
    """
    if "://" in file:
        return make_absolute(text, file.rpartition("/")[0])
    directory = Path(file).absolute().parent
    return make_absolute(text, str(directory.resolve() if ".." in re.split("[/:@]", text) else directory))


def in_order(messages: Iterable[str], path: str) -> list[str]:
    """Return messages in the order of the first line of `path` in each message. Messages without a line come last."""
    named = re.compile(rf"{re.escape(path)}:(\d+)\b")

    def position(message: str) -> float:
        found = named.search(message)
        return int(found[1]) if found else math.inf

    return sorted(messages, key=position)


def plain(value: Any) -> Any:
    """Return the data with plain numbers in place of numbers that keep their text."""
    if isinstance(value, dict):
        return {plain(key): plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return int(value) if isinstance(value, _Int) else float(value) if isinstance(value, _Float) else value


def read(path: str) -> Document:
    """Return the document in the file at a path or URL.

    Raises:
        InvalidInput: the file is not readable, is no YAML, or contains a key twice.
        Unsupported: the URL is not that of an object store.
        Denied, Unavailable: an error of the file system of a URL.
    """
    if "://" in path:
        raw = _open(path).read()
        if raw is None:
            raise InvalidInput("no such file", subject=path)
        return parse_yaml(raw, path)
    try:
        raw = Path(path).read_bytes()
    except OSError as exc:
        raise InvalidInput(f"{exc.strerror}", subject=path) from exc
    return parse_yaml(raw, path)


def _open(url: str) -> StateFile:
    try:
        return StateFile(url)
    except Unsupported as exc:
        expected = "expected a path, or the URL of a file on an object store (s3://, gs://, az:// or abfs://)"
        raise Unsupported(expected, subject=url) from exc


def parse_yaml(raw: bytes, path: str, *, is_file: bool = True) -> Document:
    """Return the document in the content of a file, or of a block or parameter with the name `path`.

    Raises:
        InvalidInput: the content is no YAML, or contains a key twice.
    """
    if len(raw) > _MOST_BYTES:
        raise InvalidInput(f"expected at most {_MOST_BYTES} bytes, got {len(raw)}", subject=path)
    try:
        loader = _Loader(raw.decode())
        node = loader.get_single_node()
        lines = _lines(node, path)
        data = loader.construct_document(node) if node is not None else None
    except InvalidInput:
        raise
    except UnicodeDecodeError as exc:
        raise InvalidInput(f"expected UTF-8, got an invalid byte at offset {exc.start}", subject=path) from exc
    except yaml.MarkedYAMLError as exc:
        line = f":{exc.problem_mark.line + 1}" if exc.problem_mark else ""
        raise InvalidInput(f"{path}{line}: not YAML ({exc.problem or exc.context})") from exc
    except (yaml.YAMLError, ValueError, TypeError, LookupError, RecursionError) as exc:  # !!int x, !!bool x, a list for a key
        raise InvalidInput(f"not YAML ({' '.join(str(exc).split())})", subject=path) from exc
    return Document(path=path, data=data, lines=lines, is_file=is_file)


def _keys(place: Sequence[str | int]) -> str:
    """Return a place in the form `key.path[0]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).removeprefix(".")


def _lines(root: yaml.Node | None, path: str) -> dict[Place, int]:
    """Return the line of each place. The line of a value in a mapping is the line of its key."""
    lines: dict[Place, int] = {(): 1}
    pending: list[tuple[Place, yaml.Node | None]] = [((), root)]
    while pending:
        at, node = pending.pop()
        if len(lines) > _MOST_PLACES or len(at) > _DEEPEST:
            raise InvalidInput(
                f"expected at most {_MOST_PLACES} values in {_DEEPEST} levels after the expansion of aliases",
                subject=path,
            )
        children: list[tuple[str | int, int, yaml.Node]] = []
        if isinstance(node, yaml.SequenceNode):
            children = [(number, item.start_mark.line, item) for number, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            children = [(str(key.value), key.start_mark.line, value) for key, value in node.value]
        for key, line, child in children:
            if (place := (*at, key)) in lines:
                raise InvalidInput(f"{path}:{line + 1}: {_keys(place)}: duplicate key, first in line {lines[place]}")
            lines[place] = line + 1
            pending.append((place, child))
    return lines
