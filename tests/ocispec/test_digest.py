"""Tests of digests: valid and invalid forms, and their computation."""

import hashlib
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dist.ocispec import Digest, Hasher
from prefect_dist.ocispec.errors import InvalidInput, Unsupported
from tests.ocispec.samples import DIGEST, HEX, digests

EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

ACCEPTED = [
    (DIGEST, "sha256", HEX, "sha256:0123456789ab"),
    (f"sha512:{HEX}{HEX}", "sha512", HEX + HEX, "sha512:0123456789ab"),
]

REFUSED = [
    ("", InvalidInput),
    (HEX, InvalidInput),
    ("sha256", InvalidInput),
    ("sha256:", InvalidInput),
    (f":{HEX}", InvalidInput),
    (f"sha256:{HEX[1:]}", InvalidInput),
    (f"sha256:{HEX}0", InvalidInput),
    (f"sha512:{HEX}", InvalidInput),
    (f"sha256:{HEX.upper()}", InvalidInput),
    (f"sha256:{HEX[1:]}g", InvalidInput),
    (f"sha256:{HEX[1:]}=", InvalidInput),
    (f"sha256:{HEX[1:]}²", InvalidInput),
    (f"SHA256:{HEX}", InvalidInput),
    (f"sha256:{HEX}\n", InvalidInput),
    (f" sha256:{HEX}", InvalidInput),
    (f"sha256::{HEX}", InvalidInput),
    (f"sha256:../{HEX[3:]}", InvalidInput),
    (f"sha256+:{HEX}", InvalidInput),
    ("md5:d41d8cd98f00b204e9800998ecf8427e", Unsupported),
    (f"sha384:{HEX}{HEX[:32]}", Unsupported),
    (f"blake3:{HEX}", Unsupported),
    ("x" * 1_000_000, InvalidInput),
    (f"sha256:{'0' * 1_000_000}", InvalidInput),
    (f"{'x' * 1_000_000}:{HEX}", Unsupported),
    ("multihash+base58:QmRZxt2b1FVZPNqd8hsiykDL3TdBDeTSPX9Kv46HmX4Gx8", Unsupported),
    ("sha256+b64u:LCa0a2j_xo_5m0U8HTBBNBNCLXBkg7-g-YpeiGJm564", Unsupported),
]


@pytest.mark.parametrize(("text", "algorithm", "hexed", "short"), ACCEPTED)
def test_a_digest_has_an_algorithm_and_hex_digits(text: str, algorithm: str, hexed: str, short: str) -> None:
    digest = Digest.parse(text)
    assert (digest.algorithm, digest.hex, digest.short, str(digest)) == (algorithm, hexed, short, text)
    assert Digest.is_valid(text)


@pytest.mark.parametrize(("text", "error"), REFUSED)
def test_a_bad_digest_is_refused(text: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^digest '") as refusal:
        Digest.parse(text)
    assert type(refusal.value) is error
    assert not Digest.is_valid(text)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 400


@given(digests)
def test_parsing_and_formatting_are_inverses(digest: Digest) -> None:
    assert Digest.parse(str(digest)) == digest


@given(st.text() | st.text("asha256512:0_-+.", max_size=80))
def test_any_text_is_parsed_or_raises_a_dist_error(text: str) -> None:
    try:
        digest = Digest.parse(text)
    except (InvalidInput, Unsupported):
        return
    assert str(digest) == text


@given(st.binary(), st.sampled_from(["sha256", "sha512"]))
def test_of_returns_the_digest_of_bytes(data: bytes, algorithm: str) -> None:
    assert str(Digest.of(data, algorithm=algorithm)) == f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


@given(st.lists(st.binary(max_size=9)), st.sampled_from(["sha256", "sha512"]))
def test_hashing_pieces_gives_the_digest_of_the_whole(pieces: list[bytes], algorithm: str) -> None:
    hasher = Hasher(algorithm)
    for piece in pieces:
        hasher.update(piece)
    assert hasher.digest() == Digest.of(b"".join(pieces), algorithm=algorithm)


def test_a_hasher_returns_its_digest_at_any_time() -> None:
    hasher = Hasher()
    assert str(hasher.digest()) == EMPTY
    hasher.update(b"a")
    assert hasher.digest() == Digest.of(b"a")
    hasher.update(b"b")
    assert hasher.digest() == Digest.of(b"ab")


def test_digests_can_be_hashed_pickled_and_sorted() -> None:
    digest = Digest.parse(DIGEST)
    assert {digest} == {Digest("sha256", HEX)} == {pickle.loads(pickle.dumps(digest))}  # noqa: S301
    assert sorted([Digest("sha512", "0"), Digest("sha256", "1"), Digest("sha256", "0")]) == [
        Digest("sha256", "0"),
        Digest("sha256", "1"),
        Digest("sha512", "0"),
    ]
