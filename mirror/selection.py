"""The selection of repositories, tags and images by an entry.

Filters are regsync's and come in its order: the range of versions, what is allowed, what is denied; then the newest alone.
"""

import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from prefect_dist.mirror.semver import Range, Version
from prefect_dist.ocispec import config
from prefect_dist.ocispec.errors import InvalidInput

# Go's regular expressions, which regsync's files have, know POSIX classes; Python's do not.
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
    """Regular expressions that match a whole text: one of `allow` has to, unless there is none; none of `deny` may.

    Raises:
        InvalidInput: one that is no regular expression.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    _allow: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)
    _deny: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_allow", tuple(compile_pattern(one) for one in self.allow))
        object.__setattr__(self, "_deny", tuple(compile_pattern(one) for one in self.deny))

    def holds(self, text: str) -> bool:
        """Return whether a text passes."""
        allowed = not self._allow or any(one.fullmatch(text) for one in self._allow)
        return allowed and not any(one.fullmatch(text) for one in self._deny)

    def choose(self, texts: Iterable[str]) -> list[str]:
        """Return the texts that pass, in their order."""
        return [text for text in texts if self.holds(text)]


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return a regular expression in Python's syntax or, as far as tags need it, in Go's.

    Raises:
        InvalidInput: it is none.
    """
    written = _CLASS.sub(lambda match: _CLASSES[match[1]], pattern)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what may mean something else in a later Python
            return re.compile(written)
    except (re.error, FutureWarning, OverflowError, RecursionError) as exc:
        raise InvalidInput(f"expected a regular expression ({exc})") from exc


NOTHING = Patterns(deny=("(?s:.*)",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Latest:
    """The newest `count` tags of each group.

    Tags are compared where they are of one shape: as many numbers (`7`, `7.2` and `7.2.4` are three shapes) and the same text
    around them (so are `7.2.4`, `v7.2.4`, `7.2.4-alpine` and `7.3.0-rc1`). `per` makes a group of each major or minor version
    of a shape.
    """

    count: int
    per: Literal["all", "major", "minor"]

    def group(self, version: Version) -> tuple[Any, ...]:
        """Return the key of the versions that a version is compared with."""
        shape = len(version.numbers), version.variant
        places = {"all": 0, "major": 1, "minor": 2}[self.per]
        return (*shape, *(version.number(place) for place in range(places)))


@dataclass(frozen=True, slots=True, kw_only=True)
class TagSet:
    """Tags that have a version in one of `ranges`, if there are any, and pass `patterns`; only the `latest` of them.

    Tags that are no versions are in no range, and never the latest. `written` is how a file in another form than ours says it.
    """

    patterns: Patterns = field(default_factory=Patterns)
    ranges: tuple[Range, ...] = ()
    latest: Latest | None = None
    written: str = field(default="", compare=False)

    def choose(self, tags: Iterable[str]) -> set[str]:
        """Return the tags that are in the set."""
        chosen = {tag: Version.parse(tag) for tag in tags if self.patterns.holds(tag)}
        if self.ranges:
            chosen = {tag: version for tag, version in chosen.items() if version and self._in_range(version)}
        return set(chosen) if self.latest is None else _newest(chosen, self.latest)

    def _in_range(self, version: Version) -> bool:
        return any(one.holds(version) for one in self.ranges)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Images made since `after`, and at most `within_s` seconds before now.

    An image whose date is unknown is in it, also where a builder wrote a date that cannot be: nothing tells that it is old.
    """

    after: datetime | None = None
    within_s: float | None = None

    def holds(self, created: datetime | None, *, now: datetime) -> bool:
        """Return whether the date of an image is in the window."""
        if created is None or created < _FIRST:
            return True
        earliest = [] if self.after is None else [self.after]
        if self.within_s is not None:
            earliest.append(now - timedelta(seconds=self.within_s))
        return all(created >= one for one in earliest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The tags in any of `sets`, all if there are none; of these, images that are in `created`.

    Tags that `immutable` holds never change once they are mirrored.
    """

    sets: tuple[TagSet, ...] = ()
    created: Window | None = None
    immutable: Patterns = NOTHING

    @property
    def is_relative(self) -> bool:
        """Return whether the selection of a tag depends on the other tags of its repository."""
        return any(one.latest is not None for one in self.sets)

    def choose(self, tags: Sequence[str]) -> list[str]:
        """Return the distinct selected tags, in their order."""
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
    newest = (sorted(group, key=lambda one: one[0], reverse=True)[: latest.count] for group in groups.values())
    return {tag for group in newest for _, tag in group}
