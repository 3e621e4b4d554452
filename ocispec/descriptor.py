"""Descriptors: the media type, digest and size of content (image-spec 1.1, descriptor.md)."""

import base64
import sys
from dataclasses import dataclass
from typing import Any, Self

from prefect_dist.ocispec import fields, mediatypes
from prefect_dist.ocispec.digest import Digest
from prefect_dist.ocispec.errors import Corrupt, InvalidInput
from prefect_dist.ocispec.platform import Platform

_MAX_SIZE = 2**63 - 1  # the specification's int64


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Descriptor:
    """The media type, digest and size of one piece of content, known before the content is fetched.

    `size` is in bytes. `data`, if present, is the content itself, inline. Annotations are pairs in document order.
    """

    media_type: str
    digest: Digest
    size: int
    urls: tuple[str, ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()
    data: bytes | None = None
    artifact_type: str | None = None
    platform: Platform | None = None

    @classmethod
    def from_json(cls, document: fields.Json, *, at: str) -> Self:
        """Return the descriptor in a parsed document. Keys that the specification does not define are ignored.

        Raises:
            InvalidInput: a required key is missing or a value has the wrong form; the message contains the path of the key
                below `at`.
            Unsupported: a digest algorithm other than sha256 and sha512.
        """
        size = fields.require(document, "size", int, at=at)
        if not 0 <= size <= _MAX_SIZE:
            raise InvalidInput(f"{at}.size: expected 0 to {_MAX_SIZE}, got {size}")
        platform = fields.optional(document, "platform", dict, at=at)
        return cls(
            media_type=sys.intern(fields.require(document, "mediaType", str, at=at)),  # a run has thousands of descriptors
            digest=Digest.parse(fields.require(document, "digest", str, at=at), prefix=f"{at}."),
            size=size,
            urls=fields.strings(document, "urls", at=at),
            annotations=fields.pairs(document, "annotations", at=at),
            data=_decode(fields.optional(document, "data", str, at=at), size, at=at),
            artifact_type=fields.optional(document, "artifactType", str, at=at),
            platform=None if platform is None else Platform.from_json(platform, at=f"{at}.platform"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form of the specification, for new documents. A document with a digest is never serialised again."""
        document: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.urls:
            document["urls"] = list(self.urls)
        if self.annotations:
            document["annotations"] = dict(self.annotations)
        if self.data is not None:
            document["data"] = base64.b64encode(self.data).decode()
        if self.artifact_type is not None:
            document["artifactType"] = self.artifact_type
        if self.platform is not None:
            document["platform"] = self.platform.to_json()
        return document

    @property
    def kind(self) -> mediatypes.Kind:
        """The role of the content according to the media type."""
        return mediatypes.kind(self.media_type)

    @property
    def key(self) -> tuple[str, Digest, int]:
        """Identity of the content (type, digest, size), used as the de-duplication key."""
        return self.media_type, self.digest, self.size

    @property
    def is_manifest(self) -> bool:
        """True if the content is a manifest and can have children."""
        return mediatypes.is_manifest(self.media_type)

    def verify(self, raw: bytes, *, source: str) -> bytes:
        """Return `raw`, after checking that `raw` is the whole content of the descriptor. `source` names the origin of `raw`.

        Raises:
            Corrupt: another size or digest.
        """
        if len(raw) != self.size:
            raise Corrupt(f"expected {self.size} bytes, {source} has {len(raw)}", subject=self)
        if (found := Digest.of(raw, algorithm=self.digest.algorithm)) != self.digest:
            raise Corrupt(f"expected {self.digest}, {source} has {found}", subject=self)
        return raw

    def __str__(self) -> str:
        return f"{self.kind} {self.digest}"


def _decode(text: str | None, size: int, *, at: str) -> bytes | None:
    if text is None:
        return None
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as exc:  # binascii.Error, or characters beyond ASCII
        raise InvalidInput(f"{at}.data: not base64 ({exc})") from exc
    if len(data) != size:
        raise InvalidInput(f"{at}.data: expected {size} bytes as in size, got {len(data)}")
    return data
