"""The selection of repositories, tags and images by an entry.

The filters apply in regsync's order: version ranges, `allow`, `deny`; then this program's filter for the newest versions.
"""

import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Literal

from prefect_dist.mirror.semver import Range, Version
from prefect_dist.ocispec import config
from prefect_dist.ocispec.errors import InvalidInput

# POSIX classes, which Go's regular expressions have (regsync's files use them) and Python's lack.
_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "digit": "0-9",
    "lower": "a-z",
    "punct": r"!-/:-@\[-`{-~",
    "upper": "A-Z",
    "word": r"\w",
    "xdigit": "0-9A-Fa-f",
}
_CLASS = re.compile(rf"\[:({'|'.join(_CLASSES)}):\]")
_FIRST = datetime(config.FIRST_YEAR, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patterns:
    """Regular expressions for whole texts. At least one of `allow` must match, unless it is empty; none of `deny` may match.

    Raises:
        InvalidInput: a pattern is no regular expression.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in (*self.allow, *self.deny):
            compile_pattern(pattern)

    def holds(self, text: str) -> bool:
        """Return True if a text passes."""
        is_allowed = not self.allow or any(compile_pattern(pattern).fullmatch(text) for pattern in self.allow)
        return is_allowed and not any(compile_pattern(pattern).fullmatch(text) for pattern in self.deny)

    def choose(self, texts: Iterable[str]) -> list[str]:
        """Return the texts that pass, in the given order."""
        return [text for text in texts if self.holds(text)]


@lru_cache(maxsize=1024)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return the regular expression in a pattern of Python's syntax, with Go's POSIX classes.

    Raises:
        InvalidInput: the pattern is no regular expression.
    """
    written = _CLASS.sub(lambda match: _CLASSES[match[1]], pattern)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # for syntax whose meaning may change in a later Python
            return re.compile(written)
    except (re.error, FutureWarning, OverflowError, RecursionError) as exc:
        raise InvalidInput(f"expected a regular expression ({exc})") from exc


NOTHING = Patterns(deny=("(?s:.*)",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Latest:
    """A filter for the newest `count` tags of each group.

    The tags of a group have the same shape: equally many numbers (`7`, `7.2` and `7.2.4` are three shapes) and the same text
    around the numbers (`7.2.4`, `v7.2.4`, `7.2.4-alpine` and `7.3.0-rc1` are four shapes). `per` makes a separate group for
    each major or minor version of a shape.
    """

    count: int
    per: Literal["all", "major", "minor"]

    def group(self, version: Version) -> tuple[Any, ...]:
        """Return the key of a version's group."""
        shape = len(version.numbers), version.variant
        places = {"all": 0, "major": 1, "minor": 2}[self.per]
        return (*shape, *(version.number(place) for place in range(places)))


@dataclass(frozen=True, slots=True, kw_only=True)
class TagSet:
    """The tags with a version in one of `ranges` (if there are ranges) that pass `patterns`; with `latest`, only the newest.

    A tag that is no version is in no range, and never the newest.
    """

    patterns: Patterns = field(default_factory=Patterns)
    ranges: tuple[Range, ...] = ()
    latest: Latest | None = None

    def choose(self, tags: Iterable[str]) -> set[str]:
        """Return the tags in the set."""
        chosen = {tag: Version.parse(tag) for tag in tags if self.patterns.holds(tag)}
        if self.ranges:
            chosen = {tag: version for tag, version in chosen.items() if version and self._in_range(version)}
        return set(chosen) if self.latest is None else _newest(chosen, self.latest)

    def _in_range(self, version: Version) -> bool:
        return any(one.holds(version) for one in self.ranges)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A period of creation dates: at or after `after`, and at most `within_s` seconds before now.

    An image without a plausible date passes, because it may be new: builders write 1970 or 0001 for reproducible images.
    """

    after: datetime | None = None
    within_s: float | None = None

    def holds(self, created: datetime | None, *, now: datetime) -> bool:
        """Return True if the creation date of an image is in the period."""
        if created is None or created < _FIRST:
            return True
        earliest = [] if self.after is None else [self.after]
        if self.within_s is not None:
            earliest.append(now - timedelta(seconds=self.within_s))
        return all(created >= one for one in earliest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The tags in at least one of `sets`, or every tag if `sets` is empty, with an image in the period `created`.

    A mirrored tag that matches `immutable` never changes.
    """

    sets: tuple[TagSet, ...] = ()
    created: Window | None = None
    immutable: Patterns = NOTHING

    @property
    def is_relative(self) -> bool:
        """True if the selection of a tag depends on further tags of its repository."""
        return any(one.latest is not None for one in self.sets)

    def choose(self, tags: Sequence[str]) -> list[str]:
        """Return the distinct selected tags, in the given order."""
        distinct = dict.fromkeys(tags)
        if not self.sets:
            return list(distinct)
        chosen = set[str]().union(*(one.choose(distinct) for one in self.sets))
        return [tag for tag in distinct if tag in chosen]


def _newest(tags: dict[str, Version | None], latest: Latest) -> set[str]:
    groups: dict[tuple[Any, ...], list[tuple[Version, str]]] = defaultdict(list)
    for tag, version in tags.items():
        if version is not None:
            groups[(tag.startswith("v"), *latest.group(version))].append((version, tag))
    newest = (sorted(group, key=lambda item: item[0].key, reverse=True)[: latest.count] for group in groups.values())
    return {tag for group in newest for _, tag in group}
