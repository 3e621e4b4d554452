"""YAML that people write, with the line of everything in it, so that a refusal can say where."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.storage.statefile import StateFile

# A configuration of a hundred thousand images has less; aliases that multiply would make any file large.
_MOST_BYTES = 16 * 1024 * 1024
_MOST_PLACES = 500_000
_DEEPEST = 64

Place = tuple[str | int, ...]


class Written:
    """A value that remembers how it was written, for places where it is text: the tag 3.10 is no 3.1."""

    written: str


class _Int(Written, int):
    """A whole number."""


class _Float(Written, float):
    """A number."""


class _Loader(yaml.SafeLoader):
    """Plain data; a date is text, as it is everywhere but in YAML, and so are `on` and `no`, as they are in YAML 1.2.

    Slower than libyaml, which dies of a file that is nested too deeply.
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
    """The content of a file: plain data, and the line of each place in it. Without `lines` it comes from no file.

    `path` is a path or URL; what is no file (`is_file`) has a name there, and is kept by Prefect for all to read.
    """

    path: str
    data: Any
    lines: Mapping[Place, int]
    is_file: bool = True

    def where(self, place: Sequence[str | int]) -> str:
        """Return `file:line: key.path` of a place, or of the nearest existing place around it."""
        at = f"{self.path}:{self.line(place)}" if self.lines else self.path
        return f"{at}: {keys}" if (keys := _keys(place)) else at

    def line(self, place: Sequence[str | int]) -> int:
        """Return the line of a place, or of the nearest existing place around it."""
        return next(self.lines[known] for length in range(len(place), -1, -1) if (known := tuple(place[:length])) in self.lines)

    def resolve_path(self, path: str, place: Sequence[str | int]) -> str:
        """Return the path or URL at a place. A relative path begins at the folder of the file.

        Raises:
            InvalidInput: it is relative, and there is no file.
        """
        said = Path(path).expanduser()
        if "://" in path or said.is_absolute():
            return path if "://" in path else str(said)
        if not self.is_file:
            told = "expected a URL or an absolute path, for there is no file to be beside"
            raise InvalidInput(f"{self.where(place)}: {told}: {path}")
        return f"{self.path.rpartition('/')[0]}/{path}" if "://" in self.path else str(Path(self.path).parent / said)

    def refuse_secret(self, text: str, place: Sequence[str | int]) -> None:
        """Reject a literal secret in a text that Prefect keeps. Such a text has to refer to the secret.

        Raises:
            InvalidInput: it does not; the message does not show it.
        """
        if not self.is_file and "{{" not in text:
            told = 'expected {{env "NAME"}}, {{file "PATH"}} or a block, got what may be a secret'
            raise InvalidInput(f"{self.where(place)}: {told}; Prefect keeps this text as it is, so replace the secret, too")


def in_order(messages: Iterable[str], path: str) -> list[str]:
    """Return messages in the order of the first line of a file that each names; the others come last."""
    named = re.compile(rf"{re.escape(path)}:(\d+)\b")

    def position(message: str) -> float:
        found = named.search(message)
        return int(found[1]) if found else math.inf

    return sorted(messages, key=position)


def plain(value: Any) -> Any:
    """Return the data without the marks of how values were written."""
    if isinstance(value, dict):
        return {plain(key): plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return int(value) if isinstance(value, _Int) else float(value) if isinstance(value, _Float) else value


def read(path: str) -> Document:
    """Return the document in the file at a path or URL.

    Raises:
        InvalidInput: it cannot be read, is no YAML, or says the same key twice.
        Denied, Unavailable: the file system of a URL.
    """
    if "://" in path:
        raw = StateFile(path).read()
        if raw is None:
            raise InvalidInput(f"{path}: no such file")
        return parse_yaml(raw, path)
    try:
        raw = Path(path).read_bytes()
    except OSError as exc:
        raise InvalidInput(f"{path}: {exc.strerror}") from exc
    return parse_yaml(raw, path)


def parse_yaml(raw: bytes, path: str, *, is_file: bool = True) -> Document:
    """Return the document in the content of a file, or in a text that messages call `path`.

    Raises:
        InvalidInput: it is no YAML, or says the same key twice.
    """
    if len(raw) > _MOST_BYTES:
        raise InvalidInput(f"{path}: expected at most {_MOST_BYTES} bytes, it has {len(raw)}")
    try:
        loader = _Loader(raw.decode())
        node = loader.get_single_node()
        lines = _lines(node, path)
        data = loader.construct_document(node) if node is not None else None
    except InvalidInput:
        raise
    except UnicodeDecodeError as exc:
        raise InvalidInput(f"{path}: expected UTF-8, byte {exc.start} is not") from exc
    except yaml.MarkedYAMLError as exc:
        line = f":{exc.problem_mark.line + 1}" if exc.problem_mark else ""
        raise InvalidInput(f"{path}{line}: not YAML ({exc.problem or exc.context})") from exc
    except (yaml.YAMLError, ValueError, TypeError, LookupError, RecursionError) as exc:  # !!int x, !!bool x, a list for a key
        raise InvalidInput(f"{path}: not YAML ({' '.join(str(exc).split())})") from exc
    return Document(path=path, data=data, lines=lines, is_file=is_file)


def _keys(place: Sequence[str | int]) -> str:
    """Return `key.path[0]` of a place."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).removeprefix(".")


def _lines(root: yaml.Node | None, path: str) -> dict[Place, int]:
    """Return the line of every place; for a value in a mapping, that of its key."""
    lines: dict[Place, int] = {(): 1}
    pending: list[tuple[Place, yaml.Node | None]] = [((), root)]
    while pending:
        at, node = pending.pop()
        if len(lines) > _MOST_PLACES or len(at) > _DEEPEST:
            raise InvalidInput(f"{path}: expected at most {_MOST_PLACES} values in {_DEEPEST} levels, aliases make more of it")
        children: list[tuple[str | int, int, yaml.Node]] = []
        if isinstance(node, yaml.SequenceNode):
            children = [(number, item.start_mark.line, item) for number, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            children = [(str(key.value), key.start_mark.line, value) for key, value in node.value]
        for key, line, child in children:
            if (place := (*at, key)) in lines:
                first = f"first in line {lines[place]}"
                raise InvalidInput(f"{path}:{line + 1}: {_keys(place)}: expected once, it is there twice, {first}")
            lines[place] = line + 1
            pending.append((place, child))
    return lines
