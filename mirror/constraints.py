"""Version constraints of `skopeo sync`, in the syntax of Masterminds' semver 3.5 for Go, as sets of tags.

The syntax differs from regsync's ranges: `,` and blanks join comparisons, `||` separates alternatives, a partial version
includes every version that starts with it, and a constraint includes prereleases only if it contains one.
"""

import re

from prefect_dist.mirror.selection import Patterns, TagSet
from prefect_dist.mirror.semver import Operator, Range, Version
from prefect_dist.ocispec.errors import InvalidInput

# constraints ::= group { "||" group };  group ::= term { ["," ] term };  term ::= version " - " version | [ operator ] version
# version     ::= ["v"] part [ "." part [ "." part ] ] [ "-" prerelease ] [ "+" build ];  part ::= number | "x" | "X" | "*"
_PART = r"(?:[0-9]+|[xX*])"
_VERSION = rf"v?{_PART}(?:\.{_PART}){{0,2}}(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?"
_TERM = re.compile(rf"\s*(?:({_VERSION})\s+-\s+({_VERSION})|(=>|>=|=<|<=|~>|!=|[=<>~^])?\s*({_VERSION}))\s*(?:,|(?=\s|$))")
_SAME = {"=>": ">=", "=<": "<=", "~>": "~", "": "="}
_MOST_NUMBERS = 3
# The texts that NewVersion of Masterminds' semver accepts.
_TAG = r"v?[0-9]+(\.[0-9]+){0,2}"
_PRERELEASE = r"(-[0-9A-Za-z.-]+)?"

_Comparison = tuple[Operator, Version]


def parse(text: str) -> tuple[TagSet, ...]:
    """Return the sets of tags that a constraint allows, one for each alternative.

    Raises:
        InvalidInput: the constraint is invalid, or has `!=` before a partial version.
    """
    return tuple(_group(group, text) for group in text.split("||"))


def _group(group: str, text: str) -> TagSet:
    comparisons: list[_Comparison] = []
    place, prerelease = 0, False
    while place == 0 or group[place:].strip():
        match = _TERM.match(group, place)
        if match is None:
            raise InvalidInput(f"constraint {text!r}: expected versions after = != > < >= <= ~ ^, joined by , and ||")
        first, last, operator, version = match.groups()
        terms = [(">=", first), ("<=", last)] if first else [(operator or "", version)]
        for symbol, bound in terms:
            comparisons += _parse_comparisons(_SAME.get(symbol, symbol), bound, text)
            prerelease |= "-" in bound
        place = match.end()
    ranges = (Range(comparisons=tuple(comparisons)),) if comparisons else ()
    patterns = Patterns(allow=(f"{_TAG}{_PRERELEASE}" if prerelease else _TAG,))
    return TagSet(patterns=patterns, ranges=ranges, written=f"of versions {group.strip()}")


def _parse_comparisons(operator: str, bound: str, text: str) -> list[_Comparison]:
    """Return the comparisons of a term. A partial version limits only the numbers that are present."""
    written = re.split(r"[-+]", bound.removeprefix("v"), maxsplit=1)[0].split(".")
    numbers = tuple(int(part) for part in written if part.isdigit())[: _first_wildcard(written)]
    version = Version(numbers=numbers, prerelease=bound.partition("+")[0].partition("-")[2])
    count = len(numbers)
    whole = count == _MOST_NUMBERS
    found: list[_Comparison]
    match operator:
        case "=" | "!=" | ">" | "<=" if whole:
            found = [(operator, version)]
        case ">=" | "<":
            found = [(operator, version)]
        case "=":
            found = _between(version, count)
        case "<=":
            found = _between(version, count)[1:]
        case ">" if numbers:
            found = [(">=", _after(numbers))]
        case "~" if whole and not any(numbers):  # an exception of Masterminds' semver
            found = [(">=", version)]
        case "~":
            found = _between(version, min(count, 2))
        case "^":
            found = _between(version, next((place for place, number in enumerate(numbers, start=1) if number), count))
        case _:
            raise InvalidInput(f"constraint {text!r}: expected all three numbers after {operator}, got {bound}")
    return found


def _between(version: Version, length: int) -> list[_Comparison]:
    """Return the range of versions that start with the first `length` numbers; no comparison if `length` is 0."""
    return [(">=", version), ("<", _after(version.numbers[:length]))] if length else []


def _after(numbers: tuple[int, ...]) -> Version:
    """Return the least version with the last number plus one: a prerelease."""
    return Version(numbers=(*numbers[:-1], numbers[-1] + 1), prerelease="0")


def _first_wildcard(parts: list[str]) -> int:
    return next((place for place, part in enumerate(parts) if not part.isdigit()), len(parts))
