"""Validation of the sections of configuration files, and the messages of mistakes."""

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
_SHOWN = 60
_NO_EFFECT = "hasNoEffect"
_SECRET = frozenset({"headers", "pass", "token", "regcert", "clientCert", "clientKey", "credentials"})


class Section(BaseModel):
    """Keys are in camelCase, and no others than these are known."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, alias_generator=to_camel, hide_input_in_errors=True)


class LenientSection(Section):
    """A section of a file that regsync reads, too: keys without a value are none, and those that begin with `x-` anybody's."""

    @model_validator(mode="before")
    @classmethod
    def _without_others(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None and not str(key).startswith("x-")}


def validate(model: type[M], document: Document) -> M:
    """Return the content of a file as a `model`.

    Raises:
        Mistakes: it says something else; each line names file, line and key of a mistake.
    """
    try:
        return model.model_validate({} if document.data is None else document.data)
    except ValidationError as exc:
        # In one line, unknown keys come first: where others are missing, they are likely the reason.
        errors = sorted(exc.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
        lines = [_told(error, document, model) for error in errors]
        raise Mistakes(*in_order(lines, document.path)) from None  # its text shows what may be secret


class MistakeLog:
    """Collects the mistakes in a document, so that people see all of them at once, each once."""

    def __init__(self, document: Document, lines: Iterable[str] = ()) -> None:
        self._path = document.path
        self._lines = dict.fromkeys(lines)

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, lines: Iterable[str]) -> None:
        """Add mistakes that were found elsewhere."""
        self._lines |= dict.fromkeys(lines)

    def attempt(self, check: Callable[[], T]) -> T | None:
        """Return the result of `check`, or None if it found a mistake, which is kept."""
        try:
            return check()
        except Mistakes as exc:
            self.add(exc.lines)
        except InvalidInput as exc:
            self.add([str(exc)])
        return None

    def refuse(self) -> None:
        """End the reading of the document if there are mistakes.

        Raises:
            Mistakes: there are some, in the order of the document.
        """
        if self._lines:
            raise Mistakes(*in_order(self._lines, self._path))


@dataclass(frozen=True, slots=True)
class Checked(Generic[M]):
    """The parts of a file that its model accepts, and the mistakes in the others.

    `value` is None where nothing can be made of the file. `wrong` are the places of what was left out.
    """

    value: M | None
    mistakes: tuple[str, ...] = ()
    wrong: frozenset[Place] = frozenset()

    def kept(self, key: str, count: int) -> list[int]:
        """Return the positions in the file of the `count` items of a list that were accepted."""
        if (key,) in self.wrong:
            return []
        total = count + sum(len(place) > 1 and place[0] == key for place in self.wrong)
        return [number for number in range(total) if (key, number) not in self.wrong]


def checked_in_parts(model: type[M], document: Document) -> Checked[M]:
    """Check a file against `model` as far as possible: an entry or key with a mistake does not hide the mistakes in others."""
    try:
        return Checked(validate(model, document))
    except Mistakes as exc:
        mistakes = exc.lines
    wrong, rest = frozenset[Place](), document.data
    for part in (_part, _section):  # a section of which a necessary key is left out is left out, too
        try:
            return Checked(model.model_validate(rest), mistakes, wrong)
        except ValidationError as exc:
            wrong |= {part(document.data, error["loc"]) for error in exc.errors(include_url=False)}
        if () in wrong:
            return Checked(None, mistakes)
        rest = {key: _without(value, key, wrong) for key, value in document.data.items() if (key,) not in wrong}
    try:
        return Checked(model.model_validate(rest), mistakes, wrong)
    except ValidationError:
        return Checked(None, mistakes)


def _section(data: Any, place: Sequence[str | int]) -> Place:  # noqa: ARG001 - used in the same way as _part
    """Return the key at the top of a file under which a mistake is."""
    return tuple(place[:1])


def _part(data: Any, place: Sequence[str | int]) -> Place:
    """Return the part of a file that is left out for a mistake: an item of a list, or one key of a mapping at the top."""
    if not place or not isinstance(data, dict):
        return ()
    inside = data.get(place[0])
    has_parts = isinstance(inside, dict | list) and len(place) > 1 and (isinstance(inside, dict) or isinstance(place[1], int))
    return tuple(place[: 1 + has_parts])


def _without(value: Any, key: str, wrong: frozenset[Place]) -> Any:
    if isinstance(value, dict):
        return {inner: one for inner, one in value.items() if (key, inner) not in wrong}
    if isinstance(value, list):
        return [one for number, one in enumerate(value) if (key, number) not in wrong]
    return value


def no_effect(why: str) -> Any:
    """Return the field of a key that is known and has no effect. Messages about its use include `why`."""
    return Field(default=None, repr=False, description=f"Has no effect: {why}", json_schema_extra={_NO_EFFECT: why})


def without_effect(section: BaseModel, document: Document, more: Iterable[tuple[Place, str]] = ()) -> list[str]:
    """Return a line for each key that is set and has no effect, in a section, its subsections and `more`, in file order."""
    found = sorted([*_idle(section, ()), *more], key=lambda one: document.line(one[0]))
    return [f"{document.where(place)}: has no effect: {why}" for place, why in found]


def _idle(section: BaseModel, at: Place) -> Iterator[tuple[Place, str]]:
    for name, field in type(section).model_fields.items():
        if name not in section.model_fields_set:
            continue
        place = (*at, field.alias or name)
        if why := _why_no_effect(field):
            yield place, why
        else:
            for inner, value in _within(getattr(section, name)):
                yield from _idle(value, (*place, *inner))


def _why_no_effect(field: "FieldInfo") -> str:
    """Return why a key has no effect; nothing for one that has."""
    extra = field.json_schema_extra
    return str(extra[_NO_EFFECT]) if isinstance(extra, dict) and _NO_EFFECT in extra else ""


def _within(value: Any) -> Iterator[tuple[Place, BaseModel]]:
    if isinstance(value, BaseModel):
        yield (), value
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    yield from (((key,), one) for key, one in pairs if isinstance(one, BaseModel))


# -- values


def is_host(text: str) -> bool:
    """Return whether a text is `host[:port]`, as in references."""
    try:
        return Reference.parse(f"{text}/x:y").host == text
    except InvalidInput:
        return False


def _host(value: object) -> object:
    if isinstance(value, str) and is_host(value):
        return value
    raise ValueError("expected host[:port], as it stands in references")


def _text(value: object) -> object:
    """Return a value as text, also a number of YAML: the tag 3.10, a password of digits."""
    if isinstance(value, Written):
        return value.written
    if isinstance(value, str):
        return value
    quotes = "; what YAML takes for something else needs quotes"
    raise ValueError(f"expected text{quotes if isinstance(value, bool) else f', got {_kind(value)}'}")


def _seconds(value: object) -> object:
    try:
        return units.seconds(str(_text(value)))
    except ValueError:
        raise ValueError("expected a duration with its unit, such as 90s, 30m, 24h or 1d12h") from None


def _flag(value: object) -> object:
    return _WORDS.get(value.lower(), value) if isinstance(value, str) else value


# What other readers of YAML take for a boolean, where one is expected.
_WORDS = {"yes": True, "on": True, "no": False, "off": False}

Flag = Annotated[bool, BeforeValidator(_flag)]
Host = Annotated[str, BeforeValidator(_host)]
Text = Annotated[str, BeforeValidator(_text, json_schema_input_type=str | float)]
Seconds = Annotated[
    float, BeforeValidator(_seconds, json_schema_input_type=Annotated[str, Field(pattern=r"^(0|([0-9.]+[smhd])+)$")])
]


def valid_by(check: Callable[[str], object]) -> AfterValidator:
    """Return a validator for texts that `check` accepts. The message is that of its InvalidInput."""

    def run(value: str) -> str:
        try:
            check(value)
        except InvalidInput as exc:
            raise ValueError(str(exc)) from None
        return value

    return AfterValidator(run)


# -- mistakes

_PAIRS = "keys and values"
_TYPES = {"dict_type": _PAIRS, "list_type": "a list", "model_type": _PAIRS}
_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: _PAIRS}
# Of the keys that are known at a place so many are named.
_NAMED = 12


def _kind(value: object) -> str:
    """Return the kind of a value, in the words of YAML."""
    return next((told for kind, told in _KINDS.items() if isinstance(value, kind)), "nothing")


def _told(error: Any, document: Document, model: type[BaseModel]) -> str:
    place = tuple(key for key in error["loc"] if key != "[key]")
    where = document.where(place)
    if error["type"] == "extra_forbidden":
        near = get_close_matches(str(place[-1]), [*_keys(model, place[:-1])], n=1)
        return f"{where}: unknown key{f'; did you mean {near[0]}' if near else ''}"
    if error["type"] == "missing":
        return f"{where}: missing"
    if error["type"] in _TYPES:
        known = f" ({named})" if (named := _name_keys(_keys(model, place))) else ""
        # Of what came the kind alone: it may be any file, by mistake.
        return f"{where}: expected {_TYPES[error['type']]}{known}, got {_kind(error['input'])}"
    if error["type"] == "too_short":
        return f"{where}: expected at least one"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    shown = isinstance(error["input"], str | int | float) and not _SECRET.intersection(place)
    value = repr(error["input"])[:_SHOWN]
    told = isinstance(error["input"], str) and value in message
    got = f", got {value}" if shown and not told else ""
    return f"{where}: {message[:1].lower()}{message[1:]}{got}"


def _name_keys(keys: Mapping[str, "FieldInfo"]) -> str:
    """Return the keys that have an effect, required ones first, and only the first of many."""
    of_use = [key for key, field in keys.items() if not _why_no_effect(field)]
    names = sorted(of_use, key=lambda key: not keys[key].is_required())
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def _keys(model: type[BaseModel], place: Sequence[str | int]) -> dict[str, "FieldInfo"]:
    """Return the known keys at a place: the keys of the section itself before those that it shares with others."""
    found: Any = model.model_fields["root"].annotation if issubclass(model, RootModel) else model
    for step in place:
        if isinstance(found, type) and issubclass(found, BaseModel):
            fields: dict[str | int, FieldInfo] = {field.alias or name: field for name, field in found.model_fields.items()}
            found = _plain(fields[step].annotation)
        else:
            found = _plain(get_args(found)[-1])
    fields = getattr(found, "model_fields", {})
    names = sorted(fields, key=lambda name: name not in found.__annotations__)
    return {fields[name].alias or name: fields[name] for name in names}


def _plain(annotation: Any) -> Any:
    """Return a type without annotations and without None."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return _plain(next(one for one in get_args(annotation) if one is not type(None)))
    return annotation
