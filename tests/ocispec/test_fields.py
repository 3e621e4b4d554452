"""Tests of typed access to parsed JSON: the values, and refusals with the path of the bad key."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prefect_dist.ocispec import fields
from prefect_dist.ocispec.errors import InvalidInput

DEEP: list[object] = []
for _ in range(5000):  # nested too deeply for repr()
    DEEP = [DEEP]
DOCUMENT: fields.Json = {
    "null": None,
    "text": "a",
    "empty": "",
    "number": 0,
    "yes": True,
    "half": 0.5,
    "list": ["a", "b"],
    "object": {"b": "1", "a": "2"},
    "objects": [{"a": 1}, {}],
    "mixed": [{}, 1],
    "values": {"odd\nkey": 1},
    "long": {"k" * 5000: 1},
    "deep": DEEP,
}

READ = [
    (fields.require(DOCUMENT, "text", str, at="m"), "a"),
    (fields.require(DOCUMENT, "empty", str, at="m"), ""),
    (fields.require(DOCUMENT, "number", int, at="m"), 0),
    (fields.optional(DOCUMENT, "absent", str, at="m"), None),
    (fields.optional(DOCUMENT, "null", int, at="m"), None),
    (fields.strings(DOCUMENT, "list", at="m"), ("a", "b")),
    (fields.strings(DOCUMENT, "null", at="m"), ()),
    (fields.pairs(DOCUMENT, "object", at="m"), (("b", "1"), ("a", "2"))),
    (fields.pairs(DOCUMENT, "absent", at="m"), ()),
    (list(fields.objects(DOCUMENT, "objects", at="m")), [("m.objects[0]", {"a": 1}), ("m.objects[1]", {})]),
    (list(fields.objects(DOCUMENT, "absent", at="m")), []),
    (list(fields.parse_objects(b'[{"a": 1}, {}]', at="m")), [("m[0]", {"a": 1}), ("m[1]", {})]),
    (list(fields.parse_objects(b"[]", at="m")), []),
]

REFUSED = [
    (fields.require, ("absent", str), "m.absent: missing, expected a string"),
    (fields.require, ("null", int), "m.null: missing, expected an integer"),
    (fields.require, ("number", str), "m.number: expected a string, got an integer"),
    (fields.require, ("yes", int), "m.yes: expected an integer, got True"),
    (fields.require, ("half", int), "m.half: expected an integer, got 0.5"),
    (fields.optional, ("list", dict), "m.list: expected an object, got a list"),
    (fields.optional, ("object", list), "m.object: expected a list, got an object"),
    (fields.strings, ("text",), "m.text: expected a list, got a string"),
    (fields.strings, ("mixed",), "m.mixed[0]: expected a string, got an object"),
    (fields.objects, ("list",), "m.list[0]: expected an object, got a string"),
    (fields.objects, ("mixed",), "m.mixed[1]: expected an object, got an integer"),
    (fields.pairs, ("list",), "m.list: expected an object, got a list"),
    (fields.pairs, ("values",), r"m.values['odd\nkey']: expected a string, got an integer"),
    (fields.pairs, ("long",), f"m.long['{'k' * 255}'…]: expected a string, got an integer"),
    (fields.optional, ("deep", str), "m.deep: expected a string, got a list"),
    (fields.objects, ("deep",), "m.deep[0]: expected an object, got a list"),
]

NOT_OBJECTS = [
    (b"", "m: not JSON ("),
    (b"\xff", "m: not JSON ("),
    (b"{", "m: not JSON ("),
    (b'{"a": NaN}', "m: not JSON ("),
    (b"<!DOCTYPE html>\n<title>Sign in</title>" + b" " * 50, r"; it starts with b'<!DOCTYPE html>\n<title>Sign in</title>  '"),
    (b"[" * 100_000, "m: not JSON ("),
    (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "m: not JSON ("),
    (b'{"a": 1' + b"0" * 5000 + b"}", "m: not JSON ("),
    (b"null", "m: expected a JSON object, got None"),
    (b"[]", "m: expected a JSON object, got a list"),
    (b'"{}"', "m: expected a JSON object, got a string"),
    (b"1", "m: expected a JSON object, got an integer"),
    (b"true", "m: expected a JSON object, got True"),
]


@pytest.mark.parametrize(("value", "expected"), READ)
def test_a_value_of_the_expected_type_is_returned(value: object, expected: object) -> None:
    assert value == expected


@pytest.mark.parametrize(("reader", "arguments", "message"), REFUSED)
def test_a_value_of_another_type_is_refused_with_its_path(reader: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        reader(DOCUMENT, *arguments, at="m")
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{}", "m: expected a JSON list, got an object"),
        (b"null", "m: expected a JSON list, got None"),
        (b"[{}, []]", "m[1]: expected an object, got a list"),
    ],
)
def test_other_json_than_a_list_of_objects_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        fields.parse_objects(raw, at="m")
    assert str(refusal.value) == message


def test_a_json_object_is_parsed() -> None:
    assert fields.parse_object(b' {"a": [1, "\xc3\xa9", null]} ', at="m") == {"a": [1, "é", None]}


@pytest.mark.parametrize(("raw", "says"), NOT_OBJECTS)
def test_other_input_than_a_json_object_is_refused(raw: bytes, says: str) -> None:
    with pytest.raises(InvalidInput, match=r"^m: ") as refusal:
        fields.parse_object(raw, at="m")
    assert says in str(refusal.value)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 200


@given(st.binary())
@example(b'{"a": "\\ud800"}')
@example(b'\xef\xbb\xbf{"a": 1}')
def test_any_bytes_are_parsed_or_raise_invalid_input(raw: bytes) -> None:
    try:
        document = fields.parse_object(raw, at="m")
    except InvalidInput:
        return
    assert isinstance(document, dict)
