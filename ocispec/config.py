"""Image configs: the diff IDs of the layers, the platform and the creation date.

The form is that of image-spec 1.1, config.md. Docker's configs have the same fields.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from prefect_dist.ocispec import fields
from prefect_dist.ocispec.digest import Digest
from prefect_dist.ocispec.errors import InvalidInput, Unsupported, quote_text
from prefect_dist.ocispec.platform import Platform

# The year of Docker's first release. Reproducible builds write earlier dates, such as year 1, 1970 or 1980, for an unknown
# date.
FIRST_YEAR = 2013


def diff_ids(raw: bytes, *, at: str) -> tuple[Digest, ...]:
    """Return the digests of the uncompressed layers of an image, in order. `at` names the config in errors.

    Raises:
        InvalidInput: not JSON, or a bad field.
        Unsupported: a root file system that does not consist of layers.
    """
    rootfs = fields.require(fields.parse_object(raw, at=at), "rootfs", dict, at=at)
    if (kind := fields.optional(rootfs, "type", str, at=f"{at}.rootfs") or "layers") != "layers":
        raise Unsupported(f"{at}.rootfs.type: expected layers, got {quote_text(kind)}")
    return tuple(
        Digest.parse(text, prefix=f"{at}.rootfs.diff_ids[{number}]: ")
        for number, text in enumerate(fields.strings(rootfs, "diff_ids", at=f"{at}.rootfs"))
    )


def platform(raw: bytes, *, at: str) -> Platform:
    """Return the platform of an image.

    Raises:
        InvalidInput: not JSON, or a bad field.
    """
    return Platform.from_json(fields.parse_object(raw, at=at), at=at)


def creation_date(raw: bytes, *, at: str) -> datetime | None:
    """Return the creation date in a config; None if the config has no date, or a date before the first container images.

    Raises:
        InvalidInput: not JSON, or a value that is not an RFC 3339 date.
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
    """Return the ChainID of layers that are applied in this order (config.md, "Layer ChainID"); None for no layers."""
    if not layers:
        return None
    chain = layers[0]
    for layer in layers[1:]:
        chain = Digest.of(f"{chain} {layer}".encode())
    return chain
