"""Versions in tags: parsing, order and ranges."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dist.mirror.semver import Range, Version
from prefect_dist.ocispec.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "numbers", "prerelease", "variant"),
    [
        ("1.2.3", (1, 2, 3), "", ""),
        ("v1.2.3", (1, 2, 3), "", ""),
        ("7", (7,), "", ""),
        ("3.19", (3, 19), "", ""),
        ("1.2.3.4", (1, 2, 3, 4), "", ""),
        ("01.02", (1, 2), "", ""),
        ("1.2.3-rc.1", (1, 2, 3), "rc.1", "rc.#"),
        ("7.2-alpine3.19", (7, 2), "alpine3.19", "alpine#"),
        ("1.0-a_b", (1, 0), "a_b", "a_b"),
        ("1.2.3+build.7", (1, 2, 3), "", ""),
        ("1.2.3-rc1+build", (1, 2, 3), "rc1", "rc#"),
    ],
)
def test_a_version_is_parsed(text: str, numbers: tuple[int, ...], prerelease: str, variant: str) -> None:
    version = Version.parse(text)
    assert version == Version(numbers=numbers, prerelease=prerelease)
    assert version.variant == variant


@pytest.mark.parametrize(
    "text", ["latest", "", "v", "V1", "1.", ".1", "1..2", "1.x", "1.2-", "-1", "vv1", "1_2", "sha256-0a", " 1"]
)
def test_a_tag_that_is_no_version_gives_none(text: str) -> None:
    assert Version.parse(text) is None


# The order of semver.org 2.0.0, section 11, with further versions that registries have.
ORDER = ["0.9", "1.0.0-1", "1.0.0-2", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2"]
ORDER += ["1.0.0-beta.11", "1.0.0-rc.1", "1.0.0-rc9", "1.0.0-rc10", "1.0.0", "1.0.0.1", "v1.2", "1.10", "2"]


def test_versions_have_the_order_of_the_specification() -> None:
    versions = [version for text in ORDER if (version := Version.parse(text))]
    shuffled = random.Random(1).sample(versions, len(versions))
    assert len(versions) == len(ORDER)
    assert sorted(shuffled, key=lambda version: version.key) == versions
    assert all(one.key < other.key for one, other in pairwise(versions))


@pytest.mark.parametrize(("one", "other"), [("1.2", "1.2.0"), ("v1", "1.0.0"), ("1.0+a", "1.0+b"), ("0", "0.0")])
def test_equal_versions_have_equal_keys(one: str, other: str) -> None:
    first, second = Version.parse(one), Version.parse(other)
    assert first is not None
    assert second is not None
    assert first.key == second.key


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("1.2.3", ["1.2.3", "v1.2.3", "1.2.3.0"], ["1.2.4", "1.2.3-rc1"]),
        ("=1.2", ["1.2", "1.2.0"], ["1.2.1", "1"]),
        (">1.2", ["1.2.1", "2"], ["1.2", "1.2.0-rc1"]),
        ("<2", ["1.9", "2.0.0-rc1", "0"], ["2", "2.0.1"]),
        (">=1.2.3 <2.0.0", ["1.2.3", "1.99"], ["1.2.2", "2.0.0", "1.2.3-rc1"]),
        ("<=1.2", ["1.2", "1.1", "1.2.0-rc1"], ["1.2.1"]),
        ("~1.2.3", ["1.2.3", "1.2.9"], ["1.3.0", "1.2.2"]),
        ("~1.2", ["1.2", "1.2.9"], ["1.3"]),
        ("~1", ["1", "1.0.5"], ["1.1"]),
        ("^1.2.3", ["1.2.3", "1.9"], ["2", "1.2.2"]),
        ("^0.2.3", ["0.2.3", "0.2.9"], ["0.3", "0.2.2"]),
        ("^0.0.3", ["0.0.3"], ["0.0.4", "0.0.2"]),
        ("^v1", ["v1.5", "1"], ["2"]),
        (">=1 <=1.0", ["1"], ["1.1"]),
        (">1 <1.0.1", ["1.0.1-a"], ["1"]),
        ("  >=1   <3  ", ["2"], ["3"]),
    ],
)
def test_a_range_contains_versions(text: str, inside: list[str], outside: list[str]) -> None:
    held = Range.parse(text)
    found = {tag: held.holds(version) for tag in (*inside, *outside) if (version := Version.parse(tag))}
    assert found == dict.fromkeys(inside, True) | dict.fromkeys(outside, False)


@pytest.mark.parametrize("text", ["", "  ", ">=", "latest", ">=1.x", ">= 1", "1 - 2", "=>1", "!=1", "1 || 2", "1,2", "*"])
def test_an_invalid_range_is_rejected(text: str) -> None:
    with pytest.raises(InvalidInput, match="version range"):
        Range.parse(text)


@pytest.mark.parametrize("text", [">=2 <1", ">1 <1", ">1 <=1.0", "=1 =2", "=1 >1.0.0", "~1.2 >=1.3", "^1 <1-rc1"])
def test_an_empty_range_is_rejected(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"version range '.*': no version is both "):
        Range.parse(text)


@given(st.from_regex(r"\A(0|[1-9][0-9]{0,3})(\.(0|[1-9][0-9]{0,3})){0,3}(-[0-9a-z.]{1,6})?\Z"))
def test_a_version_is_in_the_ranges_that_start_or_end_with_it(text: str) -> None:
    version = Version.parse(text)
    assert version is not None
    held = {operator: Range.parse(f"{operator}{text}").holds(version) for operator in ("=", ">=", "<=", "~", "^", ">", "<")}
    assert held == {"=": True, ">=": True, "<=": True, "~": True, "^": True, ">": False, "<": False}
