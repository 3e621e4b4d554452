"""Failures grouped by their cause, as people read them.

A registry that is down or refuses a password fails each of its images. Their messages differ in the name of the object and in
the path of a URL, so these are left out before messages are compared.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

# What a line is about, before the first colon and space: SOURCE to TARGET, FILE:LINE: KEY[N], or one name with a slash.
_OBJECT = re.compile(r"(?P<name>\S+/\S+ to \S+/\S+|\S+:\d+: \w+\[\d+\]|[^\s/]\S*/\S+): (?P<message>.+)")
_SUBJECT = re.compile(r"^(?P<name>[^\s/]\S*/\S+): ")
_URL_PATH = re.compile(r"(?P<host>\b[A-Z]+ https?://[^/\s]+/)[^\s:;)]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why some objects failed: one line, and the objects if there are several."""

    text: str
    objects: tuple[str, ...] = ()

    def object_lines(self, most: int) -> Iterator[str]:
        """Yield a line for each of at most `most` objects, and one for the rest."""
        yield from self.objects[:most]
        if len(self.objects) > most:
            yield f"and {len(self.objects) - most} more"


def group_causes(failures: Iterable[tuple[str, str]]) -> list[Cause]:
    """Return the causes of failures in the order of their first appearance. A failure is an object and a message."""
    groups: dict[str, dict[tuple[str, str], None]] = {}
    for name, message in failures:
        groups.setdefault(_key(name, message), {})[name, message] = None
    return [_cause(key, list(found)) for key, found in groups.items()]


def group_lines(lines: Iterable[str]) -> list[Cause]:
    """Return the causes of failures. A failure is a line such as "OBJECT: MESSAGE"."""
    return group_causes(_split(line) for line in lines)


def _cause(key: str, failures: Sequence[tuple[str, str]]) -> Cause:
    if len(failures) == 1:
        ((name, message),) = failures
        return Cause(text=message if name in message else f"{name}: {message}")
    texts = {message.removeprefix(f"{name}: ") for name, message in failures}
    times = Counter(name for name, _ in failures)
    objects = (name if times[name] == 1 else _subject(message) or name for name, message in failures)
    return Cause(text=texts.pop() if len(texts) == 1 else key, objects=tuple(dict.fromkeys(objects)))


def _key(name: str, message: str) -> str:
    """Return the message without the parts that differ between objects."""
    return _URL_PATH.sub(r"\g<host>…", _SUBJECT.sub("", message.removeprefix(f"{name}: "), count=1))


def _subject(message: str) -> str | None:
    found = _SUBJECT.match(message)
    return found and found["name"]


def _split(line: str) -> tuple[str, str]:
    found = _OBJECT.fullmatch(line)
    return (found["name"], found["message"]) if found else (line, line)
