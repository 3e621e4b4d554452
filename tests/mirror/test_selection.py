"""The selection of tags and repositories, and of images by creation date."""

import pickle
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest

from prefect_dist.mirror.selection import NOTHING, Latest, Patterns, Selection, TagSet, Window
from prefect_dist.mirror.semver import Range
from prefect_dist.ocispec.errors import InvalidInput

REDIS = ["latest", "7", "7.2", "7.2.4", "7.2.3", "7.2.4-alpine", "7.2.3-alpine", "7.2.4-alpine3.19", "6.2.14", "6.2.13", "6"]
REDIS += ["7.4-rc1", "7.4-rc2", "v1.0", "bookworm"]


@pytest.mark.parametrize(
    ("allow", "deny", "chosen"),
    [
        ((), (), ["latest", "edge", "v1.2", "v1.2-rc1"]),
        (("latest",), (), ["latest"]),
        (("late",), (), []),
        (("v1",), (), []),
        (("v.*", "edge"), (), ["edge", "v1.2", "v1.2-rc1"]),
        (("v.*",), (".*-rc\\d",), ["v1.2"]),
        ((), ("latest", "edge"), ["v1.2", "v1.2-rc1"]),
        (("late|edge|x",), (), ["edge"]),
        (("(?i)LATEST",), (), ["latest"]),
        (("v[[:digit:]]\\.[[:digit:][:alpha:]-]+",), (), ["v1.2", "v1.2-rc1"]),
        (("^edge$",), (), ["edge"]),
    ],
)
def test_patterns_select_whole_texts(allow: tuple[str, ...], deny: tuple[str, ...], chosen: list[str]) -> None:
    assert Patterns(allow=allow, deny=deny).choose(["latest", "edge", "v1.2", "v1.2-rc1"]) == chosen


@pytest.mark.parametrize("text", ["", "latest", "a\nb"])
def test_the_pattern_nothing_matches_no_text(text: str) -> None:
    assert not NOTHING.holds(text)


@pytest.mark.parametrize("pattern", ["(", "[a", "*", "a{2,1}", "\\pL", "(?P<n>a)(?P<n>b)", "[[a]"])
def test_an_invalid_pattern_is_rejected(pattern: str) -> None:
    with pytest.raises(InvalidInput, match="expected a regular expression"):
        Patterns(allow=(pattern,))


def test_equal_patterns_are_equal_values() -> None:
    patterns = Patterns(allow=("a+",), deny=("aa",))
    copied = pickle.loads(pickle.dumps(patterns))  # noqa: S301 - our own
    assert copied == patterns
    assert hash(copied) == hash(patterns)
    assert copied.choose(["a", "aa", "aaa"]) == ["a", "aaa"]


@pytest.mark.parametrize(
    ("tag_set", "chosen"),
    [
        (TagSet(), REDIS),
        (TagSet(ranges=(Range.parse(">=7.2 <8"),)), [t for t in REDIS if t.startswith("7.")]),
        (TagSet(ranges=(Range.parse("~6.2.0"), Range.parse("1"))), ["6.2.14", "6.2.13", "v1.0"]),
        (TagSet(ranges=(Range.parse(">=7.2"),), patterns=Patterns(deny=(".*-.*",))), ["7.2", "7.2.4", "7.2.3"]),
        (TagSet(patterns=Patterns(allow=(r"\d+\.\d+\.\d+",)), latest=Latest(count=1, per="all")), ["7.2.4"]),
        (TagSet(patterns=Patterns(allow=(r"\d+\.\d+\.\d+",)), latest=Latest(count=1, per="major")), ["7.2.4", "6.2.14"]),
        (TagSet(patterns=Patterns(allow=(r"\d+\.\d+\.\d+",)), latest=Latest(count=9, per="minor")), REDIS[3:5] + REDIS[8:10]),
    ],
)
def test_a_tag_set_selects_tags(tag_set: TagSet, chosen: list[str]) -> None:
    assert Selection(sets=(tag_set,)).choose(REDIS) == chosen


@pytest.mark.parametrize(
    ("per", "chosen"),
    [
        ("all", ["7", "7.2", "7.2.4", "7.2.4-alpine", "7.2.4-alpine3.19", "7.4-rc2", "v1.0"]),
        ("major", ["7", "7.2", "7.2.4", "7.2.4-alpine", "7.2.4-alpine3.19", "6.2.14", "6", "7.4-rc2", "v1.0"]),
    ],
)
def test_latest_selects_the_newest_versions_of_each_shape(per: Literal["all", "major"], chosen: list[str]) -> None:
    assert Selection(sets=(TagSet(latest=Latest(count=1, per=per)),)).choose(REDIS) == chosen


def test_latest_selects_the_newest_versions_of_each_minor_version() -> None:
    tags = ["1.0.0", "1.0.1", "1.0.2", "1.1.0", "1.1.1", "2.0.0", "2.0.0-rc1", "latest"]
    latest = Selection(sets=(TagSet(latest=Latest(count=2, per="minor")),))
    assert latest.choose(tags) == ["1.0.1", "1.0.2", "1.1.0", "1.1.1", "2.0.0", "2.0.0-rc1"]


def test_a_selection_is_the_union_of_its_sets_in_the_registry_order() -> None:
    sets = (
        TagSet(patterns=Patterns(allow=("latest", "7"))),
        TagSet(ranges=(Range.parse("=6"),)),
        TagSet(ranges=(Range.parse("7"),)),
    )
    assert Selection(sets=sets).choose(["6", "7", "latest", "8", "6"]) == ["6", "7", "latest"]


def test_a_selection_without_sets_selects_each_tag_once() -> None:
    assert Selection().choose(["b", "a", "b"]) == ["b", "a"]


NOW = datetime(2026, 6, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("window", "created", "held"),
    [
        (Window(), datetime(2014, 1, 1, tzinfo=UTC), True),
        (Window(after=NOW), NOW, True),
        (Window(after=NOW), NOW - timedelta(seconds=1), False),
        (Window(within_s=60), NOW - timedelta(seconds=60), True),
        (Window(within_s=60), NOW - timedelta(seconds=61), False),
        (Window(within_s=60), NOW + timedelta(days=1), True),
        (Window(after=NOW - timedelta(days=2), within_s=86400), NOW - timedelta(days=1, seconds=1), False),
        (Window(after=NOW - timedelta(hours=1), within_s=86400), NOW - timedelta(hours=2), False),
        (Window(after=NOW), None, True),
        (Window(after=NOW), datetime(1970, 1, 1, tzinfo=UTC), True),
        (Window(after=NOW), datetime(1980, 1, 1, 0, 0, 1, tzinfo=UTC), True),
        (Window(after=NOW), datetime(1, 1, 1, tzinfo=UTC), True),
    ],
)
def test_a_window_contains_dates(window: Window, created: datetime | None, held: bool) -> None:  # noqa: FBT001 - a row of a table
    assert window.holds(created, now=NOW) is held
