"""Tests of descriptors: every field is parsed and serialised, and each refusal contains the path of the bad key."""

import copy
import pickle
import weakref
from typing import Any

import pytest
from hypothesis import given

from prefect_dist.ocispec import Descriptor, Digest, Platform, fields, mediatypes
from prefect_dist.ocispec.errors import DistError, InvalidInput, Unsupported
from tests.ocispec.samples import DIGEST, JSON, WRONG, descriptors, make_descriptor, outcome, raw, written

FULL = written(
    urls=["https://example.com/a", "https://example.com/b"],
    annotations={"z": "1", "a": ""},
    data="MTIzNDU2Nw==",
    artifactType="application/vnd.example",
    platform={
        "os": "windows",
        "architecture": "arm64",
        "variant": "v8",
        "os.version": "10.0.1",
        "os.features": ["win32k"],
    },
)

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"mediaType": None}, "m.mediaType: missing, expected a string"),
    ({"mediaType": 1}, "m.mediaType: expected a string, got an integer"),
    ({"digest": None}, "m.digest: missing, expected a string"),
    ({"digest": ["sha256"]}, "m.digest: expected a string, got a list"),
    ({"digest": "sha256:abc"}, "m.digest 'sha256:abc': expected 64 characters 0-9 and a-f"),
    ({"digest": "abc"}, "m.digest 'abc': expected algorithm:hex"),
    ({"size": None}, "m.size: missing, expected an integer"),
    ({"size": "7"}, "m.size: expected an integer, got a string"),
    ({"size": True}, "m.size: expected an integer, got True"),
    ({"size": 7.0}, "m.size: expected an integer, got 7.0"),
    ({"size": -1}, "m.size: expected 0 to 9223372036854775807, got -1"),
    ({"size": 2**63}, "m.size: expected 0 to 9223372036854775807, got 9223372036854775808"),
    ({"size": 2**70}, "m.size: expected 0 to 9223372036854775807, got 1180591620717411303424"),
    ({"urls": "https://example.com"}, "m.urls: expected a list, got a string"),
    ({"urls": ["https://example.com", None]}, "m.urls[1]: expected a string, got None"),
    ({"annotations": ["a"]}, "m.annotations: expected an object, got a list"),
    ({"annotations": {"a": "b", "c.d": 1}}, "m.annotations['c.d']: expected a string, got an integer"),
    ({"annotations": {"a": None}}, "m.annotations['a']: expected a string, got None"),
    ({"data": 1}, "m.data: expected a string, got an integer"),
    ({"data": "MTIzNDU2Nw"}, "m.data: not base64 (Incorrect padding)"),
    ({"data": "MTIzNDU2Nw==\n"}, "m.data: not base64 (Excess data after padding)"),
    ({"data": "MTIzNDU2N!=="}, "m.data: not base64 (Only base64 data is allowed)"),
    ({"data": "é"}, "m.data: not base64 (string argument should contain only ASCII characters)"),
    ({"data": "MTIzNDU2"}, "m.data: expected 7 bytes as in size, got 6"),
    ({"data": ""}, "m.data: expected 7 bytes as in size, got 0"),
    ({"artifactType": {}}, "m.artifactType: expected a string, got an object"),
    ({"platform": "linux/amd64"}, "m.platform: expected an object, got a string"),
    ({"platform": {}}, "m.platform.os: missing, expected a string"),
    ({"platform": {"os": "linux"}}, "m.platform.architecture: missing, expected a string"),
    ({"platform": {"os": "a", "architecture": "b", "variant": 7}}, "m.platform.variant: expected a string, got an integer"),
    (
        {"platform": {"os": "a", "architecture": "b", "os.version": 7}},
        "m.platform.os.version: expected a string, got an integer",
    ),
    (
        {"platform": {"os": "a", "architecture": "b", "os.features": "c"}},
        "m.platform.os.features: expected a list, got a string",
    ),
    (
        {"platform": {"os": "a", "architecture": "b", "os.features": [1]}},
        "m.platform.os.features[0]: expected a string, got an integer",
    ),
]


def test_every_field_is_parsed() -> None:
    assert Descriptor.from_json(FULL, at="m") == Descriptor(
        media_type="application/vnd.oci.image.layer.v1.tar+gzip",
        digest=Digest.parse(DIGEST),
        size=7,
        urls=("https://example.com/a", "https://example.com/b"),
        annotations=(("z", "1"), ("a", "")),
        data=b"1234567",
        artifact_type="application/vnd.example",
        platform=Platform(os="windows", architecture="arm64", variant="v8", os_version="10.0.1", os_features=("win32k",)),
    )


def test_a_descriptor_with_only_the_required_fields() -> None:
    least = {"mediaType": "", "digest": DIGEST, "size": 0}
    assert Descriptor.from_json(least, at="m") == Descriptor(media_type="", digest=Digest.parse(DIGEST), size=0)


def test_null_is_absent_and_unknown_keys_are_ignored() -> None:
    nothing: dict[str, Any] = dict.fromkeys(["urls", "annotations", "data", "artifactType", "platform"])
    assert Descriptor.from_json(written(**nothing, unknown=[1]), at="m") == Descriptor.from_json(written(), at="m")


def test_inline_data_may_be_empty() -> None:
    assert Descriptor.from_json(written(size=0, data=""), at="m").data == b""


def test_the_largest_allowed_size_is_accepted() -> None:
    assert Descriptor.from_json(written(size=2**63 - 1), at="m").size == 2**63 - 1


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_a_bad_value_is_refused_with_its_path(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        Descriptor.from_json(written() | change, at="m")
    assert str(refusal.value) == message


@pytest.mark.parametrize("key", ["mediaType", "digest", "size"])
def test_a_missing_required_key_is_refused(key: str) -> None:
    document = {name: value for name, value in written().items() if name != key}
    with pytest.raises(InvalidInput, match=rf"^m\.{key}: missing, expected "):
        Descriptor.from_json(document, at="m")


def test_an_unsupported_algorithm_is_refused_with_its_name_and_path() -> None:
    with pytest.raises(Unsupported, match=r"^m\.digest 'md5:ab': algorithm md5 is not supported, use sha256 or sha512$"):
        Descriptor.from_json(written(digest="md5:ab"), at="m")


@pytest.mark.parametrize("key", FULL)
@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_any_value_of_any_key_is_parsed_or_raises_a_dist_error(key: str, wrong: object) -> None:
    found = outcome(lambda: Descriptor.from_json(FULL | {key: wrong}, at="m"))
    if isinstance(found, DistError):
        assert str(found).startswith(("m.data: expected", f"m.{key}"))
        assert str(found).isprintable()
    else:
        assert Descriptor.from_json(found.to_json(), at="m") == found


@given(descriptors())
def test_json_and_value_are_inverses(descriptor: Descriptor) -> None:
    assert Descriptor.from_json(descriptor.to_json(), at="m") == descriptor
    assert Descriptor.from_json(fields.parse_object(raw(descriptor.to_json()), at="m"), at="m") == descriptor


@given(descriptors())
def test_descriptors_can_be_hashed_pickled_copied_and_weakly_referenced(descriptor: Descriptor) -> None:
    assert {descriptor} == {pickle.loads(pickle.dumps(descriptor))} == {copy.deepcopy(descriptor)}  # noqa: S301
    assert weakref.ref(descriptor)() is descriptor


def test_json_has_the_specified_keys_and_no_others() -> None:
    assert Descriptor.from_json(FULL, at="m").to_json() == FULL
    assert Descriptor.from_json(written(), at="m").to_json() == written()


@given(JSON)
def test_any_incomplete_object_raises_invalid_input(value: object) -> None:
    with pytest.raises(InvalidInput, match=r"^m\."):
        Descriptor.from_json(value if isinstance(value, dict) else {"size": 1, "mediaType": value}, at="m")


def test_the_key_of_content_does_not_depend_on_its_parent() -> None:
    here = Descriptor.from_json(FULL, at="m")
    there = Descriptor.from_json(written(), at="m")
    assert here != there
    assert here.key == there.key == (there.media_type, there.digest, 7)


def test_kind_and_str_of_a_descriptor() -> None:
    index, layer = make_descriptor(mediatypes.OCI_INDEX), make_descriptor()
    assert (index.kind, index.is_manifest, layer.kind, layer.is_manifest) == ("index", True, "layer", False)
    assert str(index) == f"index {index.digest}"
