"""Referrers: manifests with a `subject`, such as signatures, bills of materials and attestations (distribution-spec 1.1).

If a registry has no referrers API ("Unavailable Referrers API"), an index lists the referrers under a fallback tag, which is
made from the digest of the subject ("Referrers Tag Schema"). Cosign uses digest tags of its own.
"""

import re
from dataclasses import dataclass
from typing import Any, Self

import orjson

from prefect_dist.ocispec import fields, mediatypes
from prefect_dist.ocispec.descriptor import Descriptor
from prefect_dist.ocispec.digest import Digest
from prefect_dist.ocispec.errors import InvalidInput, Unsupported
from prefect_dist.ocispec.image_layout import make_empty_index
from prefect_dist.ocispec.manifest import media_type_of

# The limit for one subject, and for one image with its children. More referrers are a mistake or an attack, and an error.
MAX_REFERRERS = 10_000
# "Referrers Tag Schema": both parts are cut to a length, and "-" replaces characters that a tag cannot have.
_MAX_ALGORITHM, _MAX_ENCODED = 32, 64
_NOT_IN_TAGS = re.compile(r"[^A-Za-z0-9._-]")
_MAX_TAG = 128  # distribution-spec 1.1, "Pulling manifests", <reference>
# The fallback tags of sha256 and sha512 digests.
_FALLBACK_TAG = re.compile(r"sha(?:256|512)-[0-9a-f]{64}")
# The suffixes of cosign's digest tags (sigstore/cosign, pkg/oci/remote/options.go).
_COSIGN = ("sig", "att", "sbom")
# digest-tag ::= algorithm "-" hex "." suffix
_DIGEST_TAG = re.compile(rf"(sha256|sha512)-([0-9a-f]+)\.(?:{'|'.join(_COSIGN)})")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferrerFilter:
    """A condition on the descriptor that lists a referrer.

    Attributes:
        artifact_type: the artifact type of the descriptor; None accepts any.
        annotations: annotations that the descriptor has; an empty value accepts any value.
    """

    artifact_type: str | None = None
    annotations: frozenset[tuple[str, str]] = frozenset()

    def __str__(self) -> str:
        pairs = [f"{key}={value or '*'}" for key, value in sorted(self.annotations)]
        return " ".join([*([self.artifact_type] if self.artifact_type is not None else []), *pairs]) or "any"

    def matches(self, listed: Descriptor) -> bool:
        """Return True if a listed descriptor meets the whole condition."""
        if self.artifact_type is not None and listed.artifact_type != self.artifact_type:
            return False
        found = dict(listed.annotations)
        return all(key in found and value in ("", found[key]) for key, value in self.annotations)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Referrer:
    """A manifest that refers to another manifest.

    `tag` is the digest tag of a referrer that only a tag leads to, as with cosign; None for a referrer in a list.
    """

    descriptor: Descriptor
    tag: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the form in which the store records a referrer."""
        return {"descriptor": self.descriptor.to_json(), "tag": self.tag}

    @classmethod
    def from_json(cls, document: fields.Json, *, at: str) -> Self:
        """Return the referrer in a record of the store.

        Raises:
            InvalidInput, Unsupported: the record is damaged.
        """
        descriptor = Descriptor.from_json(fields.require(document, "descriptor", dict, at=at), at=f"{at}.descriptor")
        return cls(descriptor, fields.optional(document, "tag", str, at=at))


def fallback_tag(subject: Digest) -> str:
    """Return the tag of the index of referrers of `subject`, for registries without a referrers API."""
    return _NOT_IN_TAGS.sub("-", f"{subject.algorithm[:_MAX_ALGORITHM]}-{subject.hex[:_MAX_ENCODED]}")


def is_fallback_tag(tag: str) -> bool:
    """Return True for a fallback tag of referrers."""
    return _FALLBACK_TAG.fullmatch(tag) is not None


def cosign_tags(subject: Digest) -> tuple[str, ...]:
    """Return the digest tags of cosign for signatures, attestations and a bill of materials of `subject`.

    Cosign does not shorten a digest. A tag with a sha512 digest would be too long, so such a subject has no digest tags.
    """
    tags = (f"{subject.algorithm}-{subject.hex}.{suffix}" for suffix in _COSIGN)
    return tuple(tag for tag in tags if len(tag) <= _MAX_TAG)


def is_cosign_tag(tag: str) -> bool:
    """Return True if a tag has the form of `cosign_tags`."""
    return _DIGEST_TAG.fullmatch(tag) is not None


def cosign_subject(tag: str) -> Digest | None:
    """Return the digest in a digest tag of cosign; None if the tag has another form."""
    match = _DIGEST_TAG.fullmatch(tag)
    text = f"{match[1]}:{match[2]}" if match else ""
    return Digest.parse(text) if Digest.is_valid(text) and tag in cosign_tags(Digest.parse(text)) else None


def is_index(raw: bytes) -> bool:
    """Return True if the bytes are an OCI index, the type of a list of referrers."""
    try:
        return media_type_of(raw, at="index") == mediatypes.OCI_INDEX
    except (InvalidInput, Unsupported):
        return False


def make_entry(raw: bytes, descriptor: Descriptor, *, at: str) -> Descriptor:
    """Return the entry of a manifest in a list of referrers: its descriptor, annotations, and artifact type or config type.

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
    """Return an index of referrers with one more entry; None if `referrer` is in the index already.

    `index` None starts a new index. Other fields of an existing index are kept.

    Raises:
        InvalidInput: a bad field in the index.
        Unsupported: the index is nested too deeply to be serialised again.
    """
    document = make_empty_index()
    if index is not None:
        document |= fields.parse_object(index, at=at)
    listed = list(fields.objects(document, "manifests", at=at))
    if any(one.get("digest") == str(referrer.digest) for _, one in listed):
        return None
    try:
        return orjson.dumps(document | {"manifests": [*(one for _, one in listed), referrer.to_json()]})
    except orjson.JSONEncodeError as exc:  # orjson parses 1024 levels and writes 254
        raise Unsupported(f"{at}: cannot add a referrer: the index of referrers has more than 254 nested levels") from exc
