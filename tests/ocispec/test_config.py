"""Tests of image configs: diff IDs, platform, creation date and chain ID."""

import hashlib
import json
from datetime import UTC, datetime

import pytest

from prefect_dist.ocispec import Digest, Platform, config
from prefect_dist.ocispec.errors import DistError, InvalidInput, Unsupported

IDS = [Digest.of(bytes([number])) for number in range(4)]


def raw(rootfs: object, **others: object) -> bytes:
    return json.dumps({"rootfs": rootfs, **others}).encode()


@pytest.mark.parametrize("count", range(4))
def test_diff_ids_are_read_in_their_order(count: int) -> None:
    document = raw({"type": "layers", "diff_ids": [str(digest) for digest in IDS[:count]]})
    assert config.diff_ids(document, at="config") == tuple(IDS[:count])


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        (b"{", InvalidInput, "config: not JSON"),
        (b"{}", InvalidInput, "config.rootfs: missing"),
        (raw([]), InvalidInput, "config.rootfs: expected an object"),
        (raw({"type": "layers", "diff_ids": "x"}), InvalidInput, "config.rootfs.diff_ids: expected a list"),
        (raw({"type": "layers", "diff_ids": ["sha256:x"]}), InvalidInput, "config.rootfs.diff_ids[0]: digest 'sha256:x'"),
        (raw({"type": "layers", "diff_ids": [str(IDS[0]), "md5:x"]}), Unsupported, "config.rootfs.diff_ids[1]: digest 'md5:x'"),
        (raw({"type": "other"}), Unsupported, "config.rootfs.type: expected layers, got 'other'"),
    ],
)
def test_a_bad_config_is_refused_with_the_path_of_the_bad_key(document: bytes, error: type[DistError], message: str) -> None:
    with pytest.raises(error) as caught:
        config.diff_ids(document, at="config")
    assert str(caught.value).startswith(message)


def test_the_platform_is_read_without_normalising_it() -> None:
    assert config.platform(b'{"os": "linux", "architecture": "arm", "variant": "v7"}', at="config") == Platform(
        os="linux", architecture="arm", variant="v7"
    )


def test_a_chain_id_covers_a_layer_and_every_layer_below() -> None:
    first, second, third = map(str, IDS[:3])
    two = f"sha256:{hashlib.sha256(f'{first} {second}'.encode()).hexdigest()}"
    three = f"sha256:{hashlib.sha256(f'{two} {third}'.encode()).hexdigest()}"
    assert [str(config.chain_id(IDS[:count])) for count in (1, 2, 3)] == [first, two, three]


def test_an_image_without_layers_has_no_chain_id() -> None:
    assert config.chain_id([]) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31T12:00:00.123456789Z", datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)),
        ("2026-01-31T12:00:00+02:00", datetime(2026, 1, 31, 10, tzinfo=UTC)),
        ("2026-01-31T12:00:00", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("1970-01-01T00:00:00Z", None),
        ("1980-01-01T00:00:01Z", None),
        ("0001-01-01T00:00:00Z", None),
        (None, None),
    ],
)
def test_a_creation_date_before_the_first_images_is_unknown(text: str | None, expected: datetime | None) -> None:
    assert config.creation_date(json.dumps({"created": text}).encode(), at="config") == expected


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01T00:00:00Z", ""])
def test_a_creation_date_in_another_form_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"^config\.created: expected a date such as .*, got "):
        config.creation_date(json.dumps({"created": text}).encode(), at="config")
