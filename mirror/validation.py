"""Validation of the sections of configuration files, and messages for their mistakes."""

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel

from prefect_dist.mirror.yamlfile import Document, Place, Written, in_order
from prefect_dist.ocispec import Reference, units
from prefect_dist.ocispec.errors import InvalidInput, Mistakes

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
_MAX_SHOWN = 60
_SECRET = frozenset({"headers", "pass", "token", "regcert", "clientCert", "clientKey", "credentials"})


class Section(BaseModel):
    """A section of a file. Its keys are in camelCase, and an unknown key is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, alias_generator=to_camel, hide_input_in_errors=True)


class LenientSection(Section):
    """A section of a file in regsync's format, which ignores keys without a value and keys with the prefix `x-`."""

    @model_validator(mode="before")
    @classmethod
    def _remove_ignored(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None and not str(key).startswith("x-")}


def validate(model: type[M], document: Document) -> M:
    """Return the content of a file as a `model`.

    Raises:
        Mistakes: the content is invalid; each line names file, line and key of a mistake.
    """
    try:
        return model.model_validate({} if document.data is None else document.data)
    except ValidationError as exc:
        # Within a line of the file, unknown keys come first: a misspelled key is often the reason for a missing key.
        errors = sorted(exc.errors(include_url=False), key=lambda error: error["type"] != "extra_forbidden")
        lines = [_format_mistake(error, document, model) for error in errors]
        raise Mistakes(*in_order(lines, document.path)) from None  # pydantic's message may show a secret


@contextmanager
def located(at: str) -> Iterator[None]:
    """Prefix the message of an InvalidInput with a place in a document."""
    try:
        yield
    except InvalidInput as exc:
        raise InvalidInput(f"{exc}", subject=at) from None


class MistakeLog:
    """A collection of the distinct mistakes in a document, for a single error with every mistake."""

    def __init__(self, document: Document, lines: Iterable[str] = ()) -> None:
        self._path = document.path
        self._lines = dict.fromkeys(lines)

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, lines: Iterable[str]) -> None:
        """Add mistakes."""
        self._lines |= dict.fromkeys(lines)

    def attempt(self, check: Callable[[], T]) -> T | None:
        """Return the result of `check`. If `check` raises a mistake, add the mistake and return None."""
        try:
            return check()
        except Mistakes as exc:
            self.add(exc.lines)
        except InvalidInput as exc:
            self.add([str(exc)])
        return None

    def raise_mistakes(self) -> None:
        """Raise the collected mistakes, in the order of the document, if there are any.

        Raises:
            Mistakes: the log is not empty.
        """
        if self._lines:
            raise Mistakes(*in_order(self._lines, self._path))


@dataclass(frozen=True, slots=True)
class Checked(Generic[M]):
    """The valid parts of a file, and the mistakes in the other parts. `value` is None if the file has no valid part.

    `wrong` are the places of the parts that were left out.
    """

    value: M | None
    mistakes: tuple[str, ...] = ()
    wrong: frozenset[Place] = frozenset()

    def list_positions(self, key: str, count: int) -> list[int]:
        """Return the positions in the file of the `count` valid items of a list."""
        total = count + sum(place[0] == key for place in self.wrong)
        return [number for number in range(total) if not {(key,), (key, number)} & self.wrong]


def validate_parts(model: type[M], document: Document) -> Checked[M]:
    """Validate a file against `model`. Leave out parts with mistakes, so later checks find mistakes in further parts."""
    try:
        return Checked(validate(model, document))
    except Mistakes as exc:
        mistakes = exc.lines
    wrong = frozenset[Place]()
    # First leave out the key or the list item with a mistake. If its section is invalid without it, leave out the section.
    for depth in (2, 1, 0):
        try:
            return Checked(model.model_validate(_leave_out(document.data, wrong)), mistakes, wrong)
        except ValidationError as exc:
            wrong |= {_find_part(document.data, error["loc"])[:depth] for error in exc.errors(include_url=False)}
        if () in wrong:
            break
    return Checked(None, mistakes)


def _find_part(data: Any, place: Sequence[str | int]) -> Place:
    """Return the part of a file that contains a place: a top-level key, or a key or item in it."""
    has_parts = bool(place) and isinstance(data, dict) and isinstance(data.get(place[0]), dict | list)
    return tuple(place[: 1 + has_parts])


def _leave_out(data: Any, wrong: frozenset[Place], at: Place = ()) -> Any:
    if isinstance(data, dict):
        return {key: _leave_out(value, wrong, (*at, key)) for key, value in data.items() if (*at, key) not in wrong}
    if isinstance(data, list):
        return [_leave_out(value, wrong, (*at, number)) for number, value in enumerate(data) if (*at, number) not in wrong]
    return data


def key(description: str, *, default: Any = None, **options: Any) -> Any:
    """Return the field of an optional key."""
    return Field(default=default, description=description, **options)


def no_effect(why: str) -> Any:
    """Return the field of a known key without effect. The warning about the key includes `why`."""
    return Field(default=None, repr=False, deprecated=why, description=f"Has no effect: {why}")


def list_idle_keys(section: BaseModel, document: Document, more: Iterable[tuple[Place, str]] = ()) -> list[str]:
    """Return a warning for each key without effect in a section and its subsections, and for `more`, in file order."""
    found = sorted([*_find_idle(section, ()), *more], key=lambda one: document.line(one[0]))
    return [f"{document.where(place)}: has no effect: {why}" for place, why in found]


def _find_idle(value: Any, at: Place) -> Iterator[tuple[Place, str]]:
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            place = (*at, field.alias or name)
            if name in value.model_fields_set and field.deprecation_message:
                yield place, field.deprecation_message
            elif name in value.model_fields_set:
                yield from _find_idle(getattr(value, name), place)
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _find_idle(inner, (*at, key))


# -- values


def is_host(text: str) -> bool:
    """Return True for a text `host[:port]`, as in references."""
    try:
        return Reference.parse(f"{text}/x:y").host == text
    except InvalidInput:
        return False


def _host(value: object) -> object:
    if isinstance(value, str) and is_host(value):
        return value
    raise ValueError("expected host[:port] as in references")


def _text(value: object) -> object:
    """Return a value as text. A number keeps the digits of the file: the tag 3.10, a password of digits."""
    if isinstance(value, Written):
        return value.written
    if isinstance(value, str):
        return value
    raise ValueError(f"expected text, got {_kind(value)}{'; put the text in quotes' if isinstance(value, bool) else ''}")


def _seconds(value: object) -> object:
    try:
        return units.seconds(str(_text(value)))
    except ValueError:
        raise ValueError("expected a duration with a unit, such as 90s, 30m, 24h or 1d12h") from None


def _flag(value: object) -> object:
    """Return the boolean that YAML 1.1 reads in a word."""
    return {"yes": True, "on": True, "no": False, "off": False}.get(value.lower(), value) if isinstance(value, str) else value


Flag = Annotated[bool, BeforeValidator(_flag)]
Host = Annotated[str, BeforeValidator(_host)]
Text = Annotated[str, BeforeValidator(_text, json_schema_input_type=str | float)]
Seconds = Annotated[
    float, BeforeValidator(_seconds, json_schema_input_type=Annotated[str, Field(pattern=r"^(0|([0-9.]+[smhd])+)$")])
]


def valid_by(check: Callable[[str], object]) -> AfterValidator:
    """Return a validator for texts. The InvalidInput of `check` becomes the message of a mistake."""

    def run(value: str) -> str:
        try:
            check(value)
        except InvalidInput as exc:
            raise ValueError(str(exc)) from None
        return value

    return AfterValidator(run)


# -- messages

_PAIRS = "keys and values"
_TYPES = {"dict_type": _PAIRS, "list_type": "a list", "model_type": _PAIRS}
_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: _PAIRS}
_MAX_KEYS = 12


def _kind(value: object) -> str:
    """Return the kind of a value, in the words of YAML."""
    return next((name for kind, name in _KINDS.items() if isinstance(value, kind)), "nothing")


def _format_mistake(error: Any, document: Document, model: type[BaseModel]) -> str:
    place = tuple(key for key in error["loc"] if key != "[key]")
    where, value = document.where(place), error["input"]
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key{_suggest_key(str(place[-1]), _find_fields(model, place[:-1]))}"
    if error["type"] == "missing":
        return f"{where}: missing"
    if error["type"] in _TYPES:
        known = f" ({keys})" if (keys := _list_keys(_find_fields(model, place))) else ""
        # The message shows only the kind of the value: the file may be another file, with secrets.
        return f"{where}: expected {_TYPES[error['type']]}{known}, got {_kind(value)}"
    if error["type"] == "too_short":
        return f"{where}: expected at least one item"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    shown = repr(value)[:_MAX_SHOWN]
    is_repeated = ", got " in message or (isinstance(value, str) and shown in message)
    if not isinstance(value, str | int | float) or _SECRET.intersection(place) or is_repeated:
        return f"{where}: {message[:1].lower()}{message[1:]}"
    return f"{where}: {message[:1].lower()}{message[1:]}, got {shown}"


def _suggest_key(key: str, fields: Mapping[str, "FieldInfo"]) -> str:
    """Return the end of the message about an unknown key: the nearest key, or all keys of a section."""
    near = get_close_matches(key, [*fields], n=1)
    keys = _list_keys(fields)
    return f"; did you mean {near[0]}" if near else f"; the keys are {keys}" if keys else ""


def _list_keys(fields: Mapping[str, "FieldInfo"]) -> str:
    """Return the first keys that have an effect; required keys precede optional ones."""
    names = sorted((key for key in fields if not fields[key].deprecated), key=lambda key: not fields[key].is_required())
    return ", ".join(names[:_MAX_KEYS]) + (", …" if len(names) > _MAX_KEYS else "")


def _find_fields(model: type[BaseModel], place: Sequence[str | int]) -> dict[str, "FieldInfo"]:
    """Return the fields of the section at a place, by key. Fields of the section precede those of its base classes."""
    found: Any = model.model_fields["root"].annotation if issubclass(model, RootModel) else model
    for step in place:
        if isinstance(found, type) and issubclass(found, BaseModel):
            fields: dict[str | int, FieldInfo] = {field.alias or name: field for name, field in found.model_fields.items()}
            found = _unwrap(fields[step].annotation)
        else:
            found = _unwrap(get_args(found)[-1])
    fields = getattr(found, "model_fields", {})
    names = sorted(fields, key=lambda name: name not in found.__annotations__)
    return {fields[name].alias or name: fields[name] for name in names}


def _unwrap(annotation: Any) -> Any:
    """Return a type without its annotations and without None."""
    if get_origin(annotation) is Annotated:
        return _unwrap(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return _unwrap(next(one for one in get_args(annotation) if one is not type(None)))
    return annotation
