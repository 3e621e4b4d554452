"""Image configs: what the layers of an image are when they are unpacked (image-spec 1.1, config.md; Docker's are alike)."""

from collections.abc import Sequence
from datetime import UTC, datetime

from prefect_dist.ocispec import fields
from prefect_dist.ocispec.digest import Digest
from prefect_dist.ocispec.errors import InvalidInput, Unsupported, quote_text
from prefect_dist.ocispec.platform import Platform

# The year of Docker's first release. Reproducible builds write earlier dates, such as 1, 1970 or 1980: no date is known then.
FIRST_YEAR = 2013


def diff_ids(raw: bytes, *, at: str) -> tuple[Digest, ...]:
    """Return the digests of an image's uncompressed layers, in order. `at` names the config in errors.

    Raises:
        InvalidInput: not JSON, or a bad field.
        Unsupported: a root file system that is not made of layers.
    """
    rootfs = fields.require(fields.parse_object(raw, at=at), "rootfs", dict, at=at)
    if (kind := fields.optional(rootfs, "type", str, at=f"{at}.rootfs") or "layers") != "layers":
        raise Unsupported(f"{at}.rootfs.type: expected layers, got {quote_text(kind)}")
    return tuple(
        Digest.parse(text, prefix=f"{at}.rootfs.diff_ids[{number}]: ")
        for number, text in enumerate(fields.strings(rootfs, "diff_ids", at=f"{at}.rootfs"))
    )


def platform(raw: bytes, *, at: str) -> Platform:
    """The platform that an image is for.

    Raises:
        InvalidInput: not JSON, or a bad field.
    """
    return Platform.from_json(fields.parse_object(raw, at=at), at=at)


def creation_date(raw: bytes, *, at: str) -> datetime | None:
    """Return the creation date in a config; None if it has none, or one before the first container images.

    Raises:
        InvalidInput: not JSON, or no date (RFC 3339).
    """
    text = fields.optional(fields.parse_object(raw, at=at), "created", str, at=at)
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(f"{at}.created: expected a date such as 2026-01-31T12:00:00Z, got {quote_text(text)}") from None
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    return found if found.year >= FIRST_YEAR else None


def chain_id(layers: Sequence[Digest]) -> Digest | None:
    """The name of what layers with these diff IDs give when they are applied in order ("Layer ChainID"); None without any."""
    if not layers:
        return None
    chain = layers[0]
    for layer in layers[1:]:
        chain = Digest.of(f"{chain} {layer}".encode())
    return chain
