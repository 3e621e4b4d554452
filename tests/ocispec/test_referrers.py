"""Tests of subjects, of the tags that are made from a digest, and of the index of referrers."""

import json
from typing import Any

import pytest
from hypothesis import given

from prefect_dist.ocispec import Descriptor, Digest, mediatypes
from prefect_dist.ocispec.errors import DistError, InvalidInput, Unsupported
from prefect_dist.ocispec.manifest import children, subject
from prefect_dist.ocispec.referrers import add_entry, cosign_tags, fallback_tag, is_fallback_tag, is_index, make_entry
from tests.ocispec.samples import DIGEST, JSON, artifact, descriptors, index, make_descriptor, manifest, outcome, raw, written

LONG = (  # the example of the specification
    "test+algorithm+using+algorithm+separators+and+lots+of+characters+to+excercise+overall+truncation",
    "alsoSome=InTheEncodedSectionToShowHyphenReplacementAndLotsAndLotsOfCharactersToExcerciseEncodedTruncation",
)
LONG_TAG = "test-algorithm-using-algorithm-s-alsoSome-InTheEncodedSectionToShowHyphenReplacementAndLotsAndLot"


@pytest.mark.parametrize(
    ("digest", "tag"),
    [
        (Digest("sha256", "a" * 64), f"sha256-{'a' * 64}"),
        (Digest("sha512", "a" * 128), f"sha512-{'a' * 64}"),
        (Digest(*LONG), LONG_TAG),
    ],
)
def test_the_fallback_tag_of_a_digest(digest: Digest, tag: str) -> None:
    assert fallback_tag(digest) == tag


@pytest.mark.parametrize(("algorithm", "length"), [("sha256", 64), ("sha512", 128)])
def test_a_fallback_tag_is_recognised_by_its_form(algorithm: str, length: int) -> None:
    digest = Digest(algorithm, "0a" * (length // 2))
    assert is_fallback_tag(fallback_tag(digest))
    assert not any(
        map(
            is_fallback_tag, ("v1", "sha256-1.0", f"x{fallback_tag(digest)}", f"{fallback_tag(digest)}-1", *cosign_tags(digest))
        )
    )


def test_cosign_has_three_digest_tags() -> None:
    stem = f"sha256-{'a' * 64}"
    assert cosign_tags(Digest("sha256", "a" * 64)) == (f"{stem}.sig", f"{stem}.att", f"{stem}.sbom")
    assert cosign_tags(Digest("sha512", "a" * 128)) == ()


@pytest.mark.parametrize("media_type", mediatypes.MANIFESTS)
def test_the_subject_of_a_manifest_is_returned(media_type: str) -> None:
    found = subject(raw({"subject": written(mediatypes.OCI_MANIFEST)}), media_type, at="m")
    assert found is not None
    assert (str(found.digest), found.size) == (DIGEST, 7)


def test_a_manifest_without_a_subject() -> None:
    assert subject(raw(manifest()), mediatypes.OCI_MANIFEST, at="m") is None
    assert subject(raw(manifest(subject=None)), mediatypes.OCI_MANIFEST, at="m") is None
    assert subject(b"no JSON", mediatypes.OCI_LAYER, at="m") is None


@pytest.mark.parametrize("wrong", [1, [], "x", {}, {"digest": "x"}], ids=repr)
def test_a_bad_subject_is_refused(wrong: object) -> None:
    with pytest.raises(InvalidInput, match=r"^m\.subject"):
        subject(raw(manifest(subject=wrong)), mediatypes.OCI_MANIFEST, at="m")


@pytest.mark.parametrize(
    ("document", "artifact_type"),
    [
        (manifest(artifactType="a/b"), "a/b"),
        (manifest(), mediatypes.OCI_CONFIG),
        (manifest(artifactType=""), mediatypes.OCI_CONFIG),
        (index(artifactType="a/b"), "a/b"),
        (index(), None),
        (artifact(), "a/b"),
    ],
)
def test_the_entry_of_a_referrer_in_a_list(document: dict[str, Any], artifact_type: str | None) -> None:
    found = make_entry(raw({**document, "annotations": {"k": "v"}}), make_descriptor(name="x"), at="m")
    assert (found.artifact_type, found.annotations) == (artifact_type, (("k", "v"),))
    assert found.key == make_descriptor(name="x").key


@given(descriptors(), descriptors())
def test_entries_are_added_to_an_index_once(first: Descriptor, second: Descriptor) -> None:
    one = add_entry(None, first, at="i")
    assert one is not None
    assert is_index(one)
    assert add_entry(one, first, at="i") is None
    both = add_entry(one, second, at="i")
    if first.digest != second.digest:
        assert both is not None
        assert children(both, mediatypes.OCI_INDEX, at="i") == (first, second)


def test_other_fields_of_an_existing_index_are_kept() -> None:
    theirs = index(annotations={"a": "b"}, unknown=[1])
    theirs["manifests"][0]["theirs"] = "kept"
    ours = make_descriptor(name="x")
    added = add_entry(raw(theirs), ours, at="i")
    assert added is not None
    assert json.loads(added) == {**theirs, "manifests": [*theirs["manifests"], ours.to_json()]}


def test_an_index_that_is_too_deep_to_be_serialised_is_refused() -> None:
    theirs = raw(index()).replace(b"{", b'{"deep": ' + b"[" * 1000 + b"]" * 1000 + b", ", 1)
    assert is_index(theirs)
    with pytest.raises(Unsupported, match=r"^i: cannot add a referrer: the index of referrers has more than 254 nested levels"):
        add_entry(theirs, make_descriptor(name="x"), at="i")


@given(JSON)
def test_add_entry_returns_an_index_or_raises_a_dist_error_for_any_document(document: object) -> None:
    if is_index(raw(document)):
        found = outcome(lambda: add_entry(raw(document), make_descriptor(), at="i"))
        assert found is None or isinstance(found, bytes | DistError)
