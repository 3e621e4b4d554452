"""Manifests about another manifest, its subject: signatures, bills of materials, attestations (distribution-spec 1.1).

Where a registry does not list them ("Unavailable Referrers API"), they are listed in an index under a tag that the subject's
digest makes ("Referrers Tag Schema"). Cosign has tags of its own.
"""

import re
from dataclasses import dataclass
from typing import Any, Self

import orjson

from prefect_dist.ocispec import fields, mediatypes
from prefect_dist.ocispec.descriptor import Descriptor
from prefect_dist.ocispec.digest import Digest
from prefect_dist.ocispec.errors import InvalidInput, Unsupported
from prefect_dist.ocispec.manifest import media_type_of

# What one subject, or one image in all, may have; more is a mistake or an attack, and is told.
MAX_REFERRERS = 10_000
# "Referrers Tag Schema": both sections are cut, and "-" stands for what no tag may have.
_MAX_ALGORITHM, _MAX_ENCODED = 32, 64
_NOT_IN_TAGS = re.compile(r"[^A-Za-z0-9._-]")
_MAX_TAG = 128  # distribution-spec 1.1, "Pulling manifests", <reference>
# Which tags that makes of the digests that are in use.
_LISTING = re.compile(r"sha(?:256|512)-[0-9a-f]{64}")
# What cosign appends to a digest (sigstore/cosign, pkg/oci/remote/options.go).
_COSIGN = ("sig", "att", "sbom")
_DIGEST_TAG = re.compile(rf"sha(?:256|512)-[0-9a-f]+\.(?:{'|'.join(_COSIGN)})")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferrerFilter:
    """A condition on the descriptor with which a referrer is listed.

    Attributes:
        artifact_type: the artifact type of the descriptor; None accepts any.
        annotations: annotations that the descriptor has; an empty value accepts any value.
    """

    artifact_type: str | None = None
    annotations: frozenset[tuple[str, str]] = frozenset()

    def __str__(self) -> str:
        """Return the condition for people."""
        pairs = [f"{key}={value or '*'}" for key, value in sorted(self.annotations)]
        return " ".join([*([self.artifact_type] if self.artifact_type is not None else []), *pairs]) or "any"

    def matches(self, listed: Descriptor) -> bool:
        """Return whether a listed descriptor meets all of the condition."""
        if self.artifact_type is not None and listed.artifact_type != self.artifact_type:
            return False
        found = dict(listed.annotations)
        return all(key in found and value in ("", found[key]) for key, value in self.annotations)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Referrer:
    """A manifest that refers to another one. `tag` is set if only a tag leads to it, as with cosign; None if it is listed."""

    descriptor: Descriptor
    tag: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The form of our records."""
        return {"descriptor": self.descriptor.to_json(), "tag": self.tag}

    @classmethod
    def from_json(cls, document: fields.Json, *, at: str) -> Self:
        """The referrer in a record.

        Raises:
            InvalidInput, Unsupported: it is damaged.
        """
        descriptor = Descriptor.from_json(fields.require(document, "descriptor", dict, at=at), at=f"{at}.descriptor")
        return cls(descriptor, fields.optional(document, "tag", str, at=at))


def fallback_tag(subject: Digest) -> str:
    """The tag under which the referrers of `subject` are listed where the registry does not list them."""
    return _NOT_IN_TAGS.sub("-", f"{subject.algorithm[:_MAX_ALGORITHM]}-{subject.hex[:_MAX_ENCODED]}")


def is_fallback_tag(tag: str) -> bool:
    """Return True for a fallback tag of referrers."""
    return _LISTING.fullmatch(tag) is not None


def cosign_tags(subject: Digest) -> tuple[str, ...]:
    """The tags under which cosign keeps signatures, attestations and a bill of materials of `subject`.

    It cuts nothing, so a sha512 digest is too long for any.
    """
    tags = (f"{subject.algorithm}-{subject.hex}.{suffix}" for suffix in _COSIGN)
    return tuple(tag for tag in tags if len(tag) <= _MAX_TAG)


def is_cosign_tag(tag: str) -> bool:
    """Return whether a tag is one of `cosign_tags` of some digest."""
    return _DIGEST_TAG.fullmatch(tag) is not None


def is_index(raw: bytes) -> bool:
    """Return True if the bytes are an OCI index, as lists of referrers are."""
    try:
        return media_type_of(raw, at="index") == mediatypes.OCI_INDEX
    except (InvalidInput, Unsupported):
        return False


def make_entry(raw: bytes, descriptor: Descriptor, *, at: str) -> Descriptor:
    """Return the entry of a manifest in a list of referrers, with its annotations, and its artifact type or config type.

    Raises:
        InvalidInput: not JSON, or a bad field.
    """
    document = fields.parse_object(raw, at=at)
    config = fields.optional(document, "config", dict, at=at) or {}
    own = fields.optional(document, "artifactType", str, at=at)
    return Descriptor(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        artifact_type=own or fields.optional(config, "mediaType", str, at=f"{at}.config") or None,
        annotations=fields.pairs(document, "annotations", at=at),
    )


def add_entry(index: bytes | None, referrer: Descriptor, *, at: str) -> bytes | None:
    """The index of referrers (None: there is none yet) with one more; None if it is listed already.

    What the index says beside is kept, whoever wrote it.

    Raises:
        InvalidInput: a bad field of the index.
        Unsupported: the index is nested too deeply to be written again.
    """
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": []}
    if index is not None:
        document |= fields.parse_object(index, at=at)
    listed = list(fields.objects(document, "manifests", at=at))
    if any(one.get("digest") == str(referrer.digest) for _, one in listed):
        return None
    try:
        return orjson.dumps(document | {"manifests": [*(one for _, one in listed), referrer.to_json()]})
    except orjson.JSONEncodeError as exc:  # what is read may be 1024 levels deep, what is written 254
        raise Unsupported(f"{at}: the index of referrers there is nested too deeply to be added to") from exc
