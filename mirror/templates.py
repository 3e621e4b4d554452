"""Templates in a configuration, as regsync's files have them: the part of Go's text/template that those use.

    {{env "NAME"}}  {{file "PATH"}}  {{.Ref.Tag}}  {{index (split .Sync.Source "/") 1}}  {{printf "%d" time.Now.Year}}

Values of `env` and `file` are looked up when a template is read; one that is not there is an error, unless `default` follows.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

from prefect_dist.mirror.golang import format_time, printf
from prefect_dist.ocispec.errors import InvalidInput, quote_text

Objects = Mapping[str, Mapping[str, str]]
"""What a template may name: `{"Ref": {"Tag": …}}` is `.Ref.Tag`."""

# action ::= "{{" [ "-" blank ] ( tokens | comment ) [ blank "-" ] "}}";  the dashes trim blanks around
_COMMENT = re.compile(r"(?:-\s+)?/\*.*?\*/(?:\s+-)?", re.DOTALL)
_PIECE = re.compile(r'[^"`}]+|"(?:[^"\\]|\\.)*"|`[^`]*`|\}(?!\})', re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<text>"(?:[^"\\]|\\["\\nt])*"|`[^`]*`)
      | (?P<number>[0-9]{1,9})(?![0-9.A-Za-z])
      | (?P<set>\$[A-Za-z]\w*\s*:?=)
      | (?P<variable>\$[A-Za-z]\w*)
      | (?P<field>\.[A-Za-z]\w*)
      | (?P<name>[A-Za-z]\w*)
      | (?P<mark>[|()])
    )""",
    re.VERBOSE,
)
# An action is read and rendered by recursion.
_MOST_TOKENS = 100
_ESCAPES = {r"\"": '"', r"\\": "\\", r"\n": "\n", r"\t": "\t"}


class _Refusal(Exception):
    """A template is none of ours; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Value:
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class _Absent:
    """A value that the environment or the file system lacks, until `default` replaces it."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Variable:
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """A function, or with `base` a field or method of a value; `.Ref` is a field of None."""

    name: str
    arguments: tuple["_Node", ...] = ()
    base: "_Node | None" = None
    is_field: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Assignment:
    name: str
    value: "_Node"


_Node = _Value | _Absent | _Variable | _Call | _Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A text with actions in it. `at` is where it stands: `file:line: key.path`."""

    text: str
    at: str
    _nodes: tuple[_Node, ...] = field(repr=False, compare=False)

    @classmethod
    def read(cls, text: str, *, at: str, objects: Mapping[str, Sequence[str]], environ: Mapping[str, str] = os.environ) -> Self:
        """Return the template in `text`. `objects` has the names that it may use: `{"Ref": ["Tag", …]}`.

        Raises:
            InvalidInput: it is another template, or a secret that it refers to is not there.
        """
        try:
            return cls(text=text, at=at, _nodes=_parse(text, objects, environ))
        except _Refusal as exc:
            raise InvalidInput(f"{at}: template {quote_text(text)}: {exc}") from None

    def names(self, name: str) -> bool:
        """Return whether the template uses one of the objects."""
        return any(_names(node, name) for node in self._nodes)

    def render(self, objects: Objects) -> str:
        """Return the text with the values in their places.

        Raises:
            InvalidInput: it cannot be done with these values.
        """
        try:
            return _render(self._nodes, objects)
        except _Refusal as exc:
            raise InvalidInput(f"{self.at}: template {quote_text(self.text)}: {exc}") from None


def resolve_secret(text: str, *, at: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return a text with its references resolved, without the last line break of a file. The text may be secret.

    Raises:
        InvalidInput: nothing is there, or it is another template. The text is not shown: it may hold a secret.
    """
    try:
        return _render(_parse(text, {}, environ), {})
    except _Missing as exc:
        raise InvalidInput(f"{at}: {exc}") from None
    except _Refusal:
        raise InvalidInput(f'{at}: expected {{{{env "NAME"}}}} or {{{{file "PATH"}}}}, got another template') from None


class _Missing(_Refusal):
    """A variable or file that a template refers to is missing."""


# -- reading


def _parse(text: str, objects: Mapping[str, Sequence[str]], environ: Mapping[str, str]) -> tuple[_Node, ...]:
    nodes: list[_Node] = []
    before, opening, rest = text.partition("{{")
    while opening:
        end = _end(rest)
        inner, after = rest[:end], rest[end + len("}}") :]
        trims_before, trims_after = re.match(r"-\s", inner), re.search(r"\s-\Z", inner)
        nodes.append(_Value(value=before.rstrip() if trims_before else before))
        tokens = inner[1 if trims_before else 0 : -1 if trims_after else None]
        if not _COMMENT.fullmatch(inner):
            nodes.append(_Reader(tokens, objects, environ).action())
        before, opening, rest = (after.lstrip() if trims_after else after).partition("{{")
    nodes.append(_Value(value=before))
    return tuple(nodes)


def _end(text: str) -> int:
    """Return the end of an action: the first `}}` outside of quotes."""
    comment = _COMMENT.match(text)
    place = comment.end() if comment else 0
    while match := _PIECE.match(text, place):
        place = match.end()
    if not text.startswith("}}", place):
        raise _Refusal("'{{' without its '}}'")
    return place


class _Reader:
    """Reads one action, by recursive descent."""

    def __init__(self, text: str, objects: Mapping[str, Sequence[str]], environ: Mapping[str, str]) -> None:
        self._objects, self._environ = objects, environ
        self._tokens: list[tuple[str, str]] = []
        place = 0
        while text[place:].strip():
            match = _TOKEN.match(text, place)
            if match is None:
                raise _Refusal(f"cannot read {text[place:].strip()!r}")
            kind = match.lastgroup or ""
            before = text[place - 1] if place and not match[0][0].isspace() else "("
            joined = kind == "field" and before not in "(|"  # time.Now, but not split .Ref.Tag
            self._tokens.append(("chain" if joined else kind, match[0].strip()))
            place = match.end()
            if len(self._tokens) > _MOST_TOKENS:
                raise _Refusal(f"an action has more than {_MOST_TOKENS} words")

    def action(self) -> _Node:
        """Parse `[ $name := ] pipeline` to its end."""
        name = self._next()[1].rstrip(":= \t\n") if self._kind == "set" else None
        pipeline = self._pipeline()
        if self._tokens:
            raise _Refusal(f"cannot read {self._tokens[0][1]!r}")
        return pipeline if name is None else _Assignment(name=name, value=pipeline)

    @property
    def _kind(self) -> str:
        return self._tokens[0][0] if self._tokens else ""

    def _next(self) -> tuple[str, str]:
        if not self._tokens:
            raise _Refusal("an action ends too early")
        return self._tokens.pop(0)

    def _pipeline(self) -> _Node:
        """Parse `command { "|" command }`: the result of each is the last argument of the next."""
        node = self._command(())
        while self._tokens and self._tokens[0] == ("mark", "|"):
            self._next()
            node = self._command((node,))
        return node

    def _command(self, piped: tuple[_Node, ...]) -> _Node:
        first = self._operand()
        arguments = []
        while self._tokens and self._tokens[0] not in (("mark", "|"), ("mark", ")")):
            arguments.append(self._operand())
        given = (*arguments, *piped)
        if not given:
            return self._look_up(first)
        if not isinstance(first, _Call) or first.arguments or _is_object(first.base):
            raise _Refusal("what stands first in an action with arguments has to be a function")
        call = _Call(name=first.name, arguments=given, base=first.base, is_field=first.is_field)
        return self._look_up(call)

    def _operand(self) -> _Node:
        kind, text = self._next()
        node: _Node
        if kind == "text":
            inner = text[1:-1]
            node = _Value(value=inner if text[0] == "`" else re.sub(r"\\.", lambda match: _ESCAPES[match[0]], inner))
        elif kind == "number":
            node = _Value(value=int(text))
        elif kind == "variable":
            node = _Variable(name=text)
        elif (kind, text) == ("mark", "("):
            node = self._pipeline()
            self._next()  # the only thing that ends a pipeline, but for the end
        elif kind == "field":
            node = self._object(text[1:])
        elif kind == "name" and (text in _FUNCTIONS or text in ("env", "file", "time")):
            node = _Call(name=text)
        else:
            raise _Refusal(f"unknown {text!r}; there are {', '.join(sorted((*_FUNCTIONS, 'env', 'file', 'time.Now')))}")
        while self._kind == "chain":
            node = _Call(name=self._next()[1][1:], base=self._look_up(node), is_field=True)
        return node

    def _object(self, name: str) -> _Node:
        """Parse `.Ref.Tag`: both parts are known beforehand."""
        known = [f".{one}.{field}" for one, fields in self._objects.items() for field in fields]
        said = f".{name}{self._next()[1]}" if self._kind == "chain" else f".{name}"
        if said not in known:
            near = get_close_matches(said, known, n=1)
            hint = f"did you mean {near[0]}" if near else f"there are {', '.join(known)}" if known else "there is nothing here"
            raise _Refusal(f"unknown {said}; {hint}")
        return _Call(name=said.rpartition(".")[2], base=_Call(name=name, is_field=True), is_field=True)

    def _look_up(self, node: _Node) -> _Node:
        """Return the values that the environment and files have now, in place of a call."""
        if not isinstance(node, _Call) or node.base is not None or node.name not in ("env", "file") or node.is_field:
            return node
        if len(node.arguments) != 1 or not isinstance(node.arguments[0], _Value):
            raise _Refusal(f'{node.name} expects one name, such as {{{{{node.name} "NAME"}}}}')
        name = str(node.arguments[0].value)
        if node.name == "file":
            return _content(name)
        if name not in self._environ:
            return _Absent(why=f"expected {name} in the environment, it is not set")
        return _Value(value=self._environ[name])


def _is_object(node: _Node | None) -> bool:
    """Return whether the node is an object such as `.Ref`, whose fields are texts."""
    return isinstance(node, _Call) and node.is_field and node.base is None


def _content(path: str) -> _Value | _Absent:
    try:
        return _Value(value=Path(path).expanduser().read_text().removesuffix("\n"))
    except (OSError, ValueError) as exc:  # no UTF-8, or no path
        return _Absent(
            why=f"{path if path.isprintable() else quote_text(path)}: {getattr(exc, 'strerror', None) or 'expected text'}"
        )


def _names(node: _Node, name: str) -> bool:
    match node:
        case _Call():
            own = node.base is None and node.is_field and node.name == name
            inner = (*node.arguments, *(() if node.base is None else (node.base,)))
            return own or any(_names(one, name) for one in inner)
        case _Assignment():
            return _names(node.value, name)
        case _:
            return False


# -- rendering


def _render(nodes: Sequence[_Node], objects: Objects) -> str:
    variables: dict[str, Any] = {}
    parts = []
    for node in nodes:
        if isinstance(node, _Assignment):
            variables[node.name] = _evaluate(node.value, objects, variables)
        else:
            parts.append(_shown(_evaluate(node, objects, variables)))
    return "".join(parts)


def _shown(value: Any) -> str:
    if isinstance(_is_present(value), str | int):
        return str(value)
    raise _Refusal("expected text or a number to come out")


def _evaluate(node: _Node, objects: Objects, variables: Mapping[str, Any]) -> Any:
    match node:
        case _Value():
            return node.value
        case _Absent():
            return node
        case _Variable():
            if node.name not in variables:
                raise _Refusal(f"unknown variable {node.name}")
            return variables[node.name]
        case _Assignment():  # stands alone only, see `_Reader.action`
            raise AssertionError(node)
        case _Call():
            arguments = [_evaluate(one, objects, variables) for one in node.arguments]
            if node.base is not None:
                return _method(_evaluate(node.base, objects, variables), node.name, arguments)
            return objects[node.name] if node.is_field else _call(node.name, arguments)


def _call(name: str, arguments: list[Any]) -> Any:
    if name == "time":
        return _TIME
    if name != "default":
        arguments = [_is_present(one) for one in arguments]
    try:
        return _FUNCTIONS[name](*arguments)
    except (TypeError, ValueError, IndexError, AttributeError) as exc:
        raise _Refusal(f"{name}: {exc if isinstance(exc, ValueError) else 'these arguments do not do'}") from None


def _method(base: Any, name: str, arguments: list[Any]) -> Any:
    """Return a field of an object, or the result of a method of a time."""
    base = _is_present(base)
    if base is _TIME and name == "Now" and not arguments:
        return datetime.now().astimezone()
    if isinstance(base, Mapping) and not arguments:
        return base[name]
    if isinstance(base, datetime) and name in _TIMES:
        try:
            return _TIMES[name](base, *arguments)
        except TypeError:
            raise _Refusal(f"{name}: these arguments do not do") from None
    raise _Refusal(f"unknown .{name}; of a time there are {', '.join(_TIMES)}")


def _is_present(value: Any) -> Any:
    if isinstance(value, _Absent):
        raise _Missing(value.why)
    return value


def _or_default(default: Any, value: Any) -> Any:
    return default if isinstance(value, _Absent) or not value else value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {type(value).__name__}")  # noqa: TRY004 - all that is wrong here is one
    return value


_TIME = object()
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "default": _or_default,
    "index": lambda values, place: values[place],
    "join": lambda values, separator: separator.join(values),
    "lower": lambda text: _text(text).lower(),
    "print": lambda *values: "".join(str(one) for one in values),
    "printf": lambda layout, *values: printf(_text(layout), values),
    "split": lambda text, separator: _text(text).split(_text(separator)),
    "trimSpace": lambda text: _text(text).strip(),
    "upper": lambda text: _text(text).upper(),
}
_TIMES: Mapping[str, Callable[..., Any]] = {
    "Year": lambda moment: moment.year,
    "Month": lambda moment: moment.month,
    "Day": lambda moment: moment.day,
    "Hour": lambda moment: moment.hour,
    "Minute": lambda moment: moment.minute,
    "Second": lambda moment: moment.second,
    "YearDay": lambda moment: moment.timetuple().tm_yday,
    "Unix": lambda moment: int(moment.timestamp()),
    "UTC": lambda moment: moment.astimezone(UTC),
    "Format": lambda moment, layout: format_time(moment, _text(layout)),
}
