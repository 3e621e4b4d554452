"""Templates in configuration files: the part of Go's text/template that regsync's documentation and ours use.

    {{env "NAME"}}  {{file "PATH"}}  {{.Ref.Tag}}  {{index (split .Sync.Source "/") 1}}  {{printf "%d" time.Now.Year}}

The parser reads the values of `env` and `file`. A missing variable or file is an error, unless the template passes the call to
`default`.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from posixpath import expanduser
from typing import Any, NamedTuple, Self

from prefect_dist.ocispec.errors import InvalidInput, quote_text

Objects = Mapping[str, Mapping[str, str]]
"""The values of the objects in a template: `{"Ref": {"Tag": "7.2"}}` gives `.Ref.Tag` its value."""

# action ::= "{{" [ "-" blank ] [ "$" name ":=" ] pipeline [ blank "-" ] "}}"; a dash removes the blanks on its side
# No possessive quantifiers: Python before 3.11.5 matches them wrongly (python/cpython#106052). The alternatives begin with
# different characters, so a text without "}}" takes linear time, too.
_ACTION = re.compile(r'\{\{(?P<trim>-\s)?(?P<code>(?:[^"`}]|"(?:[^"\\]|\\.)*"|`[^`]*`|\}(?!\}))*)\}\}', re.DOTALL)
_TRIM_AFTER = re.compile(r"\s-\Z")
# word ::= text | number | [ "." | "$" ] name { "." name } | ":=" | "|" | "(" | ")"
_WORD = re.compile(r'\s*("(?:[^"\\]|\\["\\nt])*"|`[^`]*`|[0-9]{1,9}(?![\w.])|[.$]?[A-Za-z]\w*(?:\.[A-Za-z]\w*)*|:=|[|()])\s*')
_SHOWN = 255  # characters of a name in a message
_ESCAPES = {r"\"": '"', r"\\": "\\", r"\n": "\n", r"\t": "\t"}
_MAX_WORDS = 100  # the parser and the renderer are recursive
_MAX_CHARS = 1 << 20  # the length of a file or a result: join and printf can multiply the length of their arguments
_VERB = re.compile(r"(%[-0]*[0-9]{0,3})([dsv%])")
_PRINTF = re.compile(rf"(?:[^%]|{_VERB.pattern})*")
# Parts of Go's reference time with strftime's code for each; a part precedes its prefixes.
_TIME_PARTS = {"2006": "Y", "January": "B", "Monday": "A", "Jan": "b", "Mon": "a", "MST": "Z", "-0700": "z", "002": "j"}
_TIME_PARTS |= {"01": "m", "02": "d", "03": "I", "04": "M", "05": "S", "06": "y", "15": "H", "PM": "p"}


class _Invalid(Exception):
    """The text is no valid template. The message is the reason."""


class _Missing(_Invalid):
    """A variable or file does not exist. The error is the value of a call until a function except `default` needs it."""


class _Call(NamedTuple):
    """A call of a function or method; `.` reads a field, `$` reads a variable, `:=` sets a variable."""

    name: str
    arguments: tuple["_Node", ...]


_Node = str | int | _Missing | _Call


class _Function(NamedTuple):
    """A function of templates. `signature` names its arguments."""

    signature: str
    run: Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A text that contains actions. `at` is its place in the configuration: `file:line: key.path`."""

    text: str
    at: str
    _nodes: tuple[_Node, ...] = field(repr=False, compare=False)

    @classmethod
    def read(cls, text: str, *, at: str, objects: Mapping[str, Sequence[str]], environ: Mapping[str, str] = os.environ) -> Self:
        """Return the template in `text`. `objects` are the fields that the template may name: `{"Ref": ["Tag", …]}`.

        Raises:
            InvalidInput: the template is invalid.
        """
        try:
            return cls(text=text, at=at, _nodes=_parse(text, objects, environ))
        except _Invalid as exc:
            raise InvalidInput(f"template {quote_text(text)}: {exc}", subject=at) from None

    def refers_to(self, name: str) -> bool:
        """Return True if the template names a field of the object `name`."""
        return any(_refers_to(node, name) for node in self._nodes)

    def render(self, objects: Objects) -> str:
        """Return the text with each action replaced by its result.

        Raises:
            InvalidInput: an action fails for these values, or needs a variable or file that does not exist.
        """
        try:
            return _render(self._nodes, objects)
        except _Invalid as exc:
            raise InvalidInput(f"template {quote_text(self.text)}: {exc}", subject=self.at) from None


def resolve_secret(text: str, *, at: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return a text with its `env` and `file` actions replaced. The text may contain a secret, so no message shows it.

    Raises:
        InvalidInput: a variable or file does not exist, or the text is another kind of template.
    """
    try:
        return _render(_parse(text, {}, environ), {})
    except _Missing as exc:
        raise InvalidInput(f"{exc}", subject=at) from None
    except _Invalid:
        raise InvalidInput(f'{at}: expected {{{{env "NAME"}}}} or {{{{file "PATH"}}}}, got another template') from None


# -- parsing


def _parse(text: str, objects: Mapping[str, Sequence[str]], environ: Mapping[str, str]) -> tuple[_Node, ...]:
    nodes: list[_Node] = []
    place = 0
    while (start := text.find("{{", place)) >= 0:
        action = _ACTION.match(text, start)
        if action is None:
            raise _Invalid("'{{' has no closing '}}'")
        before, code = text[place:start], action["code"]
        nodes.append(before.rstrip() if action["trim"] else before)
        nodes.append(_Parser(_TRIM_AFTER.sub("", code), objects, environ).parse_action())
        place = action.end()
        if _TRIM_AFTER.search(code):
            place = len(text) - len(text[place:].lstrip())
    return (*nodes, text[place:])


def _split_words(code: str) -> list[str]:
    words, place = list[str](), 0
    while place < len(code):
        word = _WORD.match(code, place)
        if word is None:
            raise _Invalid(f"cannot parse {quote_text(code)}")
        words.append(word[1])
        place = word.end()
    return words


class _Parser:
    """A recursive-descent parser for one action."""

    def __init__(self, code: str, objects: Mapping[str, Sequence[str]], environ: Mapping[str, str]) -> None:
        self._words = _split_words(code.strip())
        if len(self._words) > _MAX_WORDS:
            raise _Invalid(f"an action has more than {_MAX_WORDS} words")
        self._environ = environ
        self._fields = [f".{name}.{field}" for name, fields in objects.items() for field in fields]

    def parse_action(self) -> _Node:
        """Parse `[ $name := ] pipeline`."""
        variable = self._next() if self._words[1:2] == [":="] and self._words[0].startswith("$") else None
        if variable is not None:
            self._next()
        node = self._parse_pipeline()
        if self._words:
            raise _Invalid(f"unexpected {self._words[0]!r}")
        return node if variable is None else _Call(":=", (variable, node))

    def _next(self) -> str:
        if not self._words:
            raise _Invalid("an action ends too early")
        return self._words.pop(0)

    def _parse_pipeline(self) -> _Node:
        """Parse `command { "|" command }`. The result of a command is the last argument of the next command."""
        node = self._parse_term(is_command=True)
        while self._words[:1] == ["|"]:
            self._next()
            node = self._parse_term(node, is_command=True)
        return node

    def _parse_term(self, *piped: _Node, is_command: bool = False) -> _Node:
        """Parse a value; with `is_command`, also a function or method with its arguments, `piped` being the last."""
        word = self._next()
        group = None
        if word == "(":
            group = self._parse_pipeline()
            self._next()  # only ")" or the end of the action ends a pipeline
        arguments: list[_Node] = []
        while is_command and self._words and self._words[0] not in ("|", ")"):
            arguments.append(self._parse_term())
        arguments += piped
        if word[0] == "$" or word[0].isalpha():
            return self._resolve_name(word, arguments)
        if arguments:
            raise _Invalid(f"expected a function before its arguments, got {word!r}")
        return self._resolve_value(word) if group is None else group

    def _resolve_value(self, word: str) -> _Node:
        if word[0] in '"`':
            return re.sub(r"\\.", lambda match: _ESCAPES[match[0]], word[1:-1]) if word[0] == '"' else word[1:-1]
        if word.isdigit():
            return int(word)
        if word in self._fields:
            return _Call(".", tuple(word[1:].split(".")))
        if word[0] != ".":
            raise _Invalid(f"unexpected {word!r}")
        near = get_close_matches(word, self._fields, n=1)
        known = f"known fields: {', '.join(self._fields)}" if self._fields else "this key has no fields"
        raise _Invalid(f"unknown field {word}; {f'did you mean {near[0]}' if near else known}")

    def _resolve_name(self, name: str, arguments: list[_Node]) -> _Node:
        """Return a call of a function or of methods. The last function or method takes the arguments."""
        parts = name.split(".")
        count = 2 if parts[0] == "time" else 1
        *inner, last = [".".join(parts[:count]), *(f".{method}" for method in parts[count:])]
        receiver: list[_Node] = []
        for call in inner:
            receiver = [self._resolve_call(call, receiver)]
        return self._resolve_call(last, [*receiver, *arguments])

    def _resolve_call(self, name: str, arguments: list[_Node]) -> _Node:
        """Return a call; in place of a call of `env` or `file`, the value that the variable or file has now."""
        if name[0] == "$" and not arguments:
            return _Call("$", (name,))
        if name not in _FUNCTIONS:
            raise _Invalid(f"unknown function {_show(name)}; known functions: {', '.join(_FUNCTIONS)}")
        if name not in ("env", "file"):
            return _Call(name, tuple(arguments))
        if len(arguments) != 1 or not isinstance(arguments[0], str):
            raise _Invalid(f"function {name}: expected one quoted {_FUNCTIONS[name].signature}")
        if name == "file":
            return _read_file(arguments[0])
        return self._environ.get(arguments[0], _Missing(f"environment variable {_show(arguments[0])} is not set"))


def _read_file(path: str) -> str | _Missing:
    """Return the content of a file without its last line break."""
    file = Path(expanduser(path))
    try:
        with file.open() as opened:
            text = opened.read(_MAX_CHARS + 1)
    except (OSError, ValueError) as exc:  # ValueError: the content is not UTF-8, or the path has a null byte
        reason = getattr(exc, "strerror", None) or "expected a text file in UTF-8"
        return _Missing(f"{_show(path)}: {reason}")
    if len(text) > _MAX_CHARS:
        return _Missing(f"{_show(path)}: expected at most {_MAX_CHARS} characters")
    return text.removesuffix("\n")


def _show(name: str) -> str:
    """Return a name for a message: on one line, and not too long."""
    return name if name.isprintable() and len(name) < _SHOWN else quote_text(name)


def _refers_to(node: _Node, name: str) -> bool:
    if not isinstance(node, _Call):
        return False
    return node.arguments[0] == name if node.name == "." else any(_refers_to(one, name) for one in node.arguments)


# -- rendering


def _render(nodes: Sequence[_Node], objects: Objects) -> str:
    variables: dict[str, Any] = {}
    values = [_require(_evaluate(node, objects, variables)) for node in nodes]
    if not all(isinstance(value, str | int) for value in values):
        raise _Invalid("expected each action to give text or a number, got a list or a time")
    return "".join(map(str, values))


def _evaluate(node: _Node, objects: Objects, variables: dict[str, Any]) -> Any:
    if not isinstance(node, _Call):
        return node
    arguments = [_evaluate(one, objects, variables) for one in node.arguments]
    match node.name:
        case ".":
            return objects[arguments[0]][arguments[1]]
        case "$":
            return variables.get(arguments[0], _Missing(f"unknown variable {arguments[0]}"))
        case ":=":
            variables[arguments[0]] = arguments[1]
            return ""
        case "default":
            needed = [None if isinstance(one, _Missing) else one for one in arguments]
        case _:
            needed = list(map(_require, arguments))
    signature, run = _FUNCTIONS[node.name]
    try:
        result = run(*needed)
        if isinstance(result, str):
            _limit(len(result))
    except ValueError as exc:
        raise _Invalid(f"function {node.name}: {exc}") from None
    except (TypeError, AttributeError):
        kinds = ", ".join(type(one).__name__ for one in needed) or "no arguments"
        raise _Invalid(f"function {node.name}: expected {signature or 'no arguments'}, got {kinds}") from None
    return result


def _require(value: Any) -> Any:
    if isinstance(value, _Missing):
        raise _Missing(*value.args)  # a new error: the value would keep the traceback, and with it the values of frames
    return value


def _join(values: list[str], separator: str) -> str:
    _limit(sum(map(len, values)) + len(separator) * (len(values) - 1))
    return separator.join(values)


def _limit(length: int) -> None:
    if length > _MAX_CHARS:
        raise ValueError(f"expected a result of at most {_MAX_CHARS} characters, got {length}")


def _get_item(values: list[str], number: int) -> str:
    if not isinstance(values, list):
        raise TypeError
    if number >= len(values):
        raise ValueError(f"expected at most {len(values) - 1}, the last item of the list, got {number}")
    return values[number]


def _printf(layout: str, *values: object) -> str:
    if not _PRINTF.fullmatch(layout):
        raise ValueError("expected only %d, %s and %v in the layout")
    try:
        return _VERB.sub(lambda verb: verb[1] + verb[2].replace("v", "s"), layout) % values
    except TypeError as exc:  # too few values, too many, or text for %d
        raise ValueError(str(exc)) from None


def _format_time(moment: datetime, layout: str) -> str:
    parts = re.compile("|".join(_TIME_PARTS))
    return moment.strftime(parts.sub(lambda match: f"%{_TIME_PARTS[match[0]]}", layout.replace("%", "%%")))


_FUNCTIONS: Mapping[str, _Function] = {
    "default": _Function("DEFAULT VALUE", lambda default, value: value or default),
    "env": _Function("NAME", str),
    "file": _Function("PATH", str),
    "index": _Function("LIST NUMBER", _get_item),
    "join": _Function("LIST SEPARATOR", _join),
    "lower": _Function("TEXT", str.lower),
    "printf": _Function("LAYOUT VALUE…", _printf),
    "split": _Function("TEXT SEPARATOR", lambda text, separator: text.split(separator)),
    "time.Now": _Function("", lambda: datetime.now().astimezone()),
    "trimSpace": _Function("TEXT", lambda text: text.strip()),
    "upper": _Function("TEXT", str.upper),
    ".Format": _Function("TIME LAYOUT", _format_time),
    ".UTC": _Function("TIME", lambda time: time.astimezone(UTC)),
    **{
        f".{part}": _Function("TIME", attrgetter(part.lower())) for part in ("Year", "Month", "Day", "Hour", "Minute", "Second")
    },
}
