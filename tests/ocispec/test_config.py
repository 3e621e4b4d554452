"""What a config says of the layers, and the name of their result."""

import hashlib
import json

import pytest

from ocispec import Digest, Platform, config
from ocispec.errors import DistError, InvalidInput, Unsupported

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


def test_the_platform_is_read_as_written() -> None:
    assert config.platform(b'{"os": "linux", "architecture": "arm", "variant": "v7"}', at="config") == Platform(
        os="linux", architecture="arm", variant="v7"
    )


def test_a_chain_names_all_layers_up_to_one() -> None:
    first, second, third = map(str, IDS[:3])
    two = f"sha256:{hashlib.sha256(f'{first} {second}'.encode()).hexdigest()}"
    three = f"sha256:{hashlib.sha256(f'{two} {third}'.encode()).hexdigest()}"
    assert [str(config.chain_id(IDS[:count])) for count in (1, 2, 3)] == [first, two, three]


def test_no_layers_have_no_chain() -> None:
    assert config.chain_id([]) is None
