"""Tests of platforms: the written forms, equivalent spellings, and the best match in an index."""

import pickle
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prefect_dist.ocispec import Platform
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.ocispec.platform import best
from tests.ocispec.samples import platforms, words

PARSED = [
    ("linux/amd64", "linux/amd64"),
    ("Linux/AMD64", "linux/amd64"),
    ("linux/x86_64", "linux/amd64"),
    ("linux/x86-64", "linux/amd64"),
    ("linux/amd64/v1", "linux/amd64"),
    ("linux/amd64/V3", "linux/amd64/v3"),
    ("linux/amd64/2", "linux/amd64/v2"),
    ("linux/i386", "linux/386"),
    ("linux/386", "linux/386"),
    ("linux/aarch64", "linux/arm64"),
    ("linux/arm64/v8", "linux/arm64"),
    ("linux/arm64/8", "linux/arm64"),
    ("linux/arm64/v9", "linux/arm64/v9"),
    ("linux/arm", "linux/arm"),
    ("linux/arm/v7", "linux/arm"),
    ("linux/arm/7", "linux/arm"),
    ("linux/arm/v6", "linux/arm/v6"),
    ("linux/arm/5", "linux/arm/v5"),
    ("linux/armhf", "linux/arm"),
    ("linux/armel", "linux/arm/v6"),
    ("linux/armel/v5", "linux/arm/v5"),
    ("linux/ppc64le", "linux/ppc64le"),
    ("linux/riscv64", "linux/riscv64"),
    ("linux/mips64le/softfloat", "linux/mips64le/softfloat"),
    ("macos/arm64", "darwin/arm64"),
    ("windows/amd64", "windows/amd64"),
    ("windows()/amd64", "windows/amd64"),
    ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
    ("unknown/unknown", "unknown/unknown"),
]

REFUSED = [
    "",
    "linux",
    "amd64",
    "/",
    "linux/",
    "/amd64",
    "linux/amd64/",
    "linux//v7",
    "linux/arm/v7/x",
    "linux/*",
    "all",
    " linux/amd64",
    "linux/amd64\n",
    "linux/amd 64",
    "linux(10/amd64",
    "(10)/amd64",
    "linux/amd64(10)",
    "linux/arm/٣",
    "línux/amd64",
    "linux/amd64,linux/arm64",
]

# wanted platform, candidate, rank: 0 is an exact match, n is n variants older, None does not run
RANKS = [
    ("linux/amd64", "linux/amd64", 0),
    ("linux/amd64", "linux/x86_64/v1", 0),
    ("linux/amd64", "linux/arm64", None),
    ("linux/amd64", "windows/amd64", None),
    ("linux/amd64", "linux/386", None),
    ("linux/amd64", "linux/amd64/v2", None),
    ("linux/amd64/v3", "linux/amd64/v3", 0),
    ("linux/amd64/v3", "linux/amd64/v2", 1),
    ("linux/amd64/v3", "linux/amd64", 2),
    ("linux/amd64/v3", "linux/amd64/v4", None),
    ("linux/arm", "linux/arm/v7", 0),
    ("linux/arm", "linux/arm/v6", 1),
    ("linux/arm", "linux/arm/v5", 2),
    ("linux/arm", "linux/arm/v8", None),
    ("linux/arm/v6", "linux/arm", None),
    ("linux/arm/v6", "linux/arm/v5", 1),
    ("linux/arm/v8", "linux/arm", 1),
    ("linux/arm64", "linux/aarch64", 0),
    ("linux/arm64", "linux/arm64/v8", 0),
    ("linux/arm64/v9", "linux/arm64", 1),
    ("linux/arm64", "linux/arm64/v9", None),
    ("linux/arm64", "linux/arm", None),
    ("linux/mips64le", "linux/mips64le/softfloat", None),
    ("linux/mips64le/softfloat", "linux/mips64le/softfloat", 0),
    ("linux/mips64le/softfloat", "linux/mips64le", None),
    ("linux/ppc64le/power9", "linux/ppc64le/power8", None),
    ("linux/s390x", "linux/s390x", 0),
    ("windows/amd64", "windows(10.0.17763.1)/amd64", 0),
    ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64", 0),
    ("windows(10.0.17763)/amd64", "windows(10.0.17763.1879)/amd64", 0),
    ("windows(10.0.17763)/amd64", "windows(10.0.177630)/amd64", None),
    ("windows(10.0.17763)/amd64", "windows(10.0.20348)/amd64", None),
    ("windows(10.0.17763.1879)/amd64", "windows(10.0.17763)/amd64", None),
    ("windows(10.0.17763)/amd64", "windows/amd64", None),
    ("linux/amd64", "unknown/unknown", None),
    ("unknown/unknown", "unknown/unknown", 0),
]

INDEX = [
    "linux/amd64",
    "linux/arm/v5",
    "linux/arm/v7",
    "linux/arm64/v8",
    "windows(10.0.1)/amd64",
    "windows(10.0.2)/amd64",
    "unknown/unknown",
]

CHOSEN = [
    (["linux/amd64"], ["linux/amd64"]),
    (["linux/arm64"], ["linux/arm64/v8"]),
    (["linux/arm64", "linux/amd64"], ["linux/amd64", "linux/arm64/v8"]),
    (["linux/amd64", "linux/amd64"], ["linux/amd64"]),
    (["linux/arm"], ["linux/arm/v7"]),
    (["linux/arm/v6"], ["linux/arm/v5"]),
    (["linux/arm/v6", "linux/arm/v7"], ["linux/arm/v5", "linux/arm/v7"]),
    (["linux/amd64/v4"], ["linux/amd64"]),
    (["windows/amd64"], ["windows(10.0.1)/amd64", "windows(10.0.2)/amd64"]),
    (["windows(10.0.2)/amd64"], ["windows(10.0.2)/amd64"]),
    (["unknown/unknown"], ["unknown/unknown"]),
    (["linux/s390x"], []),
    (["linux/s390x", "linux/amd64"], ["linux/amd64"]),
    ([], []),
]


@dataclass(frozen=True)
class Candidate:
    text: str | None
    number: int = 0

    @property
    def platform(self) -> Platform | None:
        return None if self.text is None else unnormalised(self.text)


def unnormalised(text: str) -> Platform:
    """Return a platform in the spelling of the text, without normalising it."""
    system, architecture, *variant = text.split("/")
    system, _, version = system.removesuffix(")").partition("(")
    return Platform(os=system, architecture=architecture, variant=variant[0] if variant else None, os_version=version or None)


@pytest.mark.parametrize(("text", "normal"), PARSED)
def test_written_platforms_are_parsed_and_normalised(text: str, normal: str) -> None:
    assert str(Platform.parse(text)) == normal
    assert Platform.parse(text) == unnormalised(normal) == unnormalised(normal).normalise()


@pytest.mark.parametrize("text", REFUSED)
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        Platform.parse(text)
    assert str(refusal.value) == f"platform {text!r}: expected os/architecture[/variant], such as linux/amd64"


@given(st.from_regex(r"\A[A-Za-z0-9_-]{1,6}(\([0-9.]{0,6}\))?/[A-Za-z0-9_-]{1,6}(/[A-Za-z0-9._-]{1,4})?\Z"))
@example("linux/armel")
@example("macos/x86_64/1")
def test_parsing_and_formatting_a_normalised_platform_are_inverses(text: str) -> None:
    platform = Platform.parse(text)
    assert Platform.parse(str(platform)) == platform


@given(platforms)
def test_normalising_twice_changes_nothing(platform: Platform) -> None:
    assert platform.normalise().normalise() == platform.normalise()
    assert platform.matches(platform.normalise())


@given(platforms)
def test_json_and_value_are_inverses(platform: Platform) -> None:
    assert Platform.from_json(platform.to_json(), at="m") == platform
    assert {platform} == {pickle.loads(pickle.dumps(platform))}  # noqa: S301


def test_platforms_from_json_are_not_normalised() -> None:
    document = {"architecture": "x86_64", "os": "Linux", "variant": "V1", "os.version": "10", "os.features": ["a", "b"]}
    platform = Platform.from_json(document, at="m")
    assert platform.to_json() == document
    assert platform.normalise() == Platform(os="linux", architecture="amd64", os_version="10", os_features=("a", "b"))


def test_empty_strings_count_as_absent() -> None:
    document = {"architecture": "amd64", "os": "linux", "variant": "", "os.version": "", "os.features": []}
    assert Platform.from_json(document, at="m") == Platform(os="linux", architecture="amd64")


@pytest.mark.parametrize(("wish", "candidate", "rank"), RANKS)
def test_the_rank_of_a_candidate(wish: str, candidate: str, rank: int | None) -> None:
    assert unnormalised(wish).rank(unnormalised(candidate)) == rank
    assert unnormalised(wish).matches(unnormalised(candidate)) is (rank == 0)


@pytest.mark.parametrize("variant", ["v" + "9" * 5000, "v", "v-1", "v٣", "v²", "v1.2", "V", "9" * 5000, "\x00"])
def test_unknown_variants_match_only_themselves(variant: str) -> None:
    offered = Platform(os="linux", architecture="amd64", variant=variant)
    assert Platform.parse("linux/amd64/v4").rank(offered) is None
    assert offered.rank(Platform.parse("linux/amd64")) is None
    assert offered.rank(offered) == 0


@given(platforms, platforms)
def test_any_two_platforms_can_be_compared(wish: Platform, candidate: Platform) -> None:
    rank = wish.rank(candidate)
    assert rank is None or rank >= 0


def test_os_features_of_a_candidate_do_not_exclude_it() -> None:
    offered = Platform(os="windows", architecture="amd64", os_features=("win32k",))
    assert Platform.parse("windows/amd64").matches(offered)


@pytest.mark.parametrize(("wishes", "chosen"), CHOSEN)
def test_the_best_candidates_keep_their_order(wishes: list[str], chosen: list[str]) -> None:
    found = best([Platform.parse(wish) for wish in wishes], [Candidate(text) for text in INDEX])
    assert [candidate.text for candidate in found] == chosen


def test_every_candidate_of_the_best_rank_is_selected() -> None:
    candidates = [
        Candidate("linux/arm/v6", 1),
        Candidate("linux/arm", 2),
        Candidate("linux/arm/v7", 3),
        Candidate("linux/arm/v7", 3),
    ]
    found = best([Platform.parse("linux/arm")], candidates)
    assert found == tuple(candidates[1:])


def test_a_candidate_without_a_platform_is_always_selected() -> None:
    candidates = [Candidate(None), Candidate("linux/amd64"), Candidate(None)]
    assert best([Platform.parse("linux/s390x")], candidates) == (candidates[0], candidates[2])
    assert best([Platform.parse("linux/amd64")], candidates) == tuple(candidates)


def test_wanted_platforms_may_come_from_a_generator() -> None:
    candidates = [Candidate("linux/amd64"), Candidate("linux/arm64")]
    assert best((Platform.parse(text) for text in ("linux/arm64", "linux/amd64")), candidates) == tuple(candidates)


@given(words)
def test_any_text_is_parsed_or_raises_invalid_input(text: str) -> None:
    try:
        platform = Platform.parse(text)
    except InvalidInput:
        return
    assert platform.normalise() == platform
