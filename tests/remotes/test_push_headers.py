import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dist.ocispec.errors import InvalidInput, Unavailable, Unsupported
from prefect_dist.remotes.headers import check_digest, digest_in, length, location, uploaded_bytes
from tests.remotes.asking import BLOB, check_message, descriptor

ASKED = httpx.URL("https://registry.example:8443/v2/a/b/blobs/uploads/?mount=x")
TEXT = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=60)


def answer(**headers: str) -> httpx.Response:
    pairs = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return httpx.Response(202, headers=pairs, request=httpx.Request("POST", ASKED))


@pytest.mark.parametrize(
    ("text", "bytes_there"),
    [
        ("0-0", 0),
        ("0-1", 2),
        ("0-999", 1000),
        ("bytes=0-999", 1000),
        ("bytes 0-999", 1000),
        ("0-0999", 1000),
        ("", None),
        ("0-", None),
        ("1-5", None),
        ("0--1", None),
        ("0-1-2", None),
        ("0-1/5", None),
        ("0-\u00b2", None),
        ("0-1,3-4", None),
        (f"0-{10**18 - 1}", 10**18),
        (f"0-{10**18}", None),
    ],
)
def test_range_gives_the_number_of_uploaded_bytes(text: str, bytes_there: int | None) -> None:
    assert uploaded_bytes(answer(range=text)) == bytes_there


def test_an_invalid_range_gives_none() -> None:
    assert uploaded_bytes(answer()) is None


@given(st.integers(2, 10**17), st.sampled_from(["", "bytes=", "bytes "]))
def test_every_size_survives_in_range(size: int, unit: str) -> None:
    assert uploaded_bytes(answer(range=f"{unit}0-{size - 1}")) == size


@given(TEXT)
def test_any_range_is_a_size_or_none(text: str) -> None:
    found = uploaded_bytes(answer(range=text))
    assert found is None or found >= 0


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("/v2/a/b/blobs/uploads/1", "https://registry.example:8443/v2/a/b/blobs/uploads/1"),
        ("/u?_state=a%2Fb+c==&x", "https://registry.example:8443/u?_state=a%2Fb+c==&x"),
        ("1?x=y", "https://registry.example:8443/v2/a/b/blobs/uploads/1?x=y"),
        ("?x=y", "https://registry.example:8443/v2/a/b/blobs/uploads/?x=y"),
        ("//other.example/u", "https://other.example/u"),
        ("http://other.example:80/u", "http://other.example/u"),
    ],
)
def test_location_is_resolved_against_the_request(text: str, url: str) -> None:
    assert str(location(answer(location=text), "it")) == url


def test_a_missing_location_gives_none() -> None:
    assert location(answer(), "it") is None


@given(TEXT)
def test_any_location_is_a_url_or_an_error(text: str) -> None:
    try:
        found = location(answer(location=text), "it")
    except Unavailable as exc:
        check_message(exc, "it")
        return
    assert found is not None
    assert found.scheme in ("http", "https")
    assert found.host
    assert found.copy_with(query=found.query + b"&digest=x").host == found.host


@given(st.integers(0, 10**15))
def test_every_length_survives_in_content_length(size: int) -> None:
    assert length(answer(content_length=str(size))) == size


@pytest.mark.parametrize("text", ["", "-1", "1.5", "\u00b2", "1" * 20, "ten", "1, 1"])
def test_an_invalid_length_gives_none(text: str) -> None:
    assert length(answer(content_length=text)) is None


def test_a_digest_header_is_parsed() -> None:
    wanted = descriptor(BLOB)
    assert digest_in(answer(docker_content_digest=str(wanted.digest)), "it") == wanted.digest
    assert digest_in(answer(), "it") is None
    check_digest(answer(docker_content_digest=str(wanted.digest)), wanted, "it")


@given(TEXT.filter(bool))
def test_an_invalid_digest_header_is_reported(text: str) -> None:
    with pytest.raises((InvalidInput, Unsupported)) as caught:
        digest_in(answer(docker_content_digest=text), "it")
    check_message(caught.value, "it")
