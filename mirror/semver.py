"""Versions in tags, their order (semver.org 2.0.0, section 11), and version ranges in regsync's syntax.

Tags are looser than the specification: `v1.2.3`, `7`, `3.19` and `1.2.3.4` are versions, and missing numbers count as zero.
Numbers inside an identifier compare as numbers, so `rc10` is newer than `rc9`. No library selects the same tags as regsync:
libraries are as strict as the specification, or have different operators.
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from prefect_dist.ocispec.errors import InvalidInput

# version ::= ["v"] number { "." number } [ "-" prerelease ] [ "+" build ]; the prerelease of a tag may contain "_"
_VERSION = re.compile(r"v?(?P<numbers>[0-9]+(?:\.[0-9]+)*)(?:-(?P<prerelease>[0-9A-Za-z._-]+))?(?:\+[0-9A-Za-z.-]+)?")
_PIECES = re.compile(r"[0-9]+|[^0-9]+")
_NUMBERS = re.compile(r"[0-9]+(?:\.[0-9]+)*")
# range ::= comparison { blank comparison };  comparison ::= [ operator ] version
_COMPARISON = re.compile(r"(?P<operator>[<>]=?|[=~^])?(?P<version>.+)")

Operator = Literal["=", ">", "<", ">=", "<="]
_COMPARE: Mapping[Operator, Callable[[Any, Any], bool]]
_COMPARE = {"=": operator.eq, ">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}
_LOWER, _UPPER = frozenset({"=", ">", ">="}), frozenset({"=", "<", "<="})


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A version: its numbers, and the text after the first `-`."""

    numbers: tuple[int, ...]
    prerelease: str = ""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the version in a tag, or None if the tag is no version."""
        match = _VERSION.fullmatch(text)
        if match is None:
            return None
        numbers = tuple(int(number) for number in match["numbers"].split("."))
        return cls(numbers=numbers, prerelease=match["prerelease"] or "")

    def __str__(self) -> str:
        return ".".join(map(str, self.numbers)) + (f"-{self.prerelease}" if self.prerelease else "")

    @property
    def variant(self) -> str:
        """Prerelease with `#` in place of numbers: `rc#` for `1.0-rc2`, `alpine#` for `7.2-alpine3.19`."""
        return _NUMBERS.sub("#", self.prerelease)

    def number(self, place: int) -> int:
        """Return the number at a place, which starts at 0; zero if the version has fewer numbers."""
        return self.numbers[place] if place < len(self.numbers) else 0

    @property
    def key(self) -> tuple[tuple[int, ...], bool, tuple[tuple[tuple[int, int, str], ...], ...]]:
        """Sort key; equal for versions such as 1.2 and 1.2.0."""
        numbers = list(self.numbers)
        while numbers and numbers[-1] == 0:
            numbers.pop()
        identifiers = tuple(_identifier(one) for one in self.prerelease.split(".")) if self.prerelease else ()
        return tuple(numbers), not self.prerelease, identifiers


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A conjunction of comparisons.

    Raises:
        InvalidInput: the comparisons exclude each other.
    """

    comparisons: tuple[tuple[Operator, Version], ...]

    def __post_init__(self) -> None:
        for lower, least in self.comparisons:
            for upper, most in self.comparisons:
                is_empty = most.key < least.key or (most.key == least.key and {lower, upper} & {"<", ">"})
                if lower in _LOWER and upper in _UPPER and is_empty:
                    raise InvalidInput(f"version range '{self}': no version is both {lower}{least} and {upper}{most}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the range in a text such as `>=1.2 <2.0`, `~1.4`, `^2.1.0` or `3.0.1`.

        Raises:
            InvalidInput: the text has another form.
        """
        comparisons = tuple(one for part in text.split() for one in _comparisons(part, text))
        if not comparisons:
            raise InvalidInput(f"version range {text!r}: expected versions after = > < >= <= ~ ^, such as '>=1.2 <2.0'")
        return cls(comparisons=comparisons)

    def __str__(self) -> str:
        return " ".join(f"{symbol}{version}" for symbol, version in self.comparisons)

    def holds(self, version: Version) -> bool:
        """Return True if a version is in the range."""
        return all(_COMPARE[symbol](version.key, bound.key) for symbol, bound in self.comparisons)


def _identifier(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return the sort key of an identifier. Numbers precede text (section 11.4)."""
    return tuple((0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in _PIECES.findall(text))


def _comparisons(part: str, text: str) -> tuple[tuple[Operator, Version], ...]:
    match = _COMPARISON.fullmatch(part)
    version = Version.parse(match["version"]) if match else None
    if match is None or version is None:
        raise InvalidInput(f"version range {text!r}: expected a version after = > < >= <= ~ ^, got {part!r}")
    match match["operator"]:
        case "~":
            return (">=", version), ("<", Version(numbers=(version.number(0), version.number(1) + 1)))
        case "^":
            return (">=", version), ("<", _next_breaking(version))
        case ">" | "<" | ">=" | "<=" as symbol:
            return ((symbol, version),)
        case _:
            return (("=", version),)


def _next_breaking(version: Version) -> Version:
    """Return the next version with breaking changes: the first nonzero number plus one."""
    major, minor, patch = (version.number(place) for place in range(3))
    if major:
        return Version(numbers=(major + 1,))
    return Version(numbers=(0, minor + 1) if minor else (0, 0, patch + 1))
