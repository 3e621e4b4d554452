"""Errors, grouped by cause.

If a registry is down or refuses a password, each image of the registry fails. The messages of the errors differ in the name of
the object and in the path of a URL. Grouping ignores both.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from prefect_dist.mirror.report import RunError

_URL_PATH = re.compile(r"(?P<host>\b[A-Z]+ https?://[^/\s]+/)[^\s:;)]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """A cause of failures as a line, with the names of the failed objects if several failed."""

    text: str
    objects: tuple[str, ...] = ()

    def object_lines(self, most: int) -> Iterator[str]:
        """Yield a line for each of at most `most` objects, and a line with the number of further objects."""
        yield from self.objects[:most]
        if len(self.objects) > most:
            yield f"and {len(self.objects) - most} more"


def group_causes(errors: Iterable[RunError]) -> list[Cause]:
    """Return the causes of errors in the order of first appearance."""
    groups: dict[str, list[RunError]] = {}
    for error in errors:
        groups.setdefault(_URL_PATH.sub(r"\g<host>…", error.split_message()[1]), []).append(error)
    return [_cause(key, found) for key, found in groups.items()]


def _cause(key: str, errors: Sequence[RunError]) -> Cause:
    if len(errors) == 1:
        return Cause(text=str(errors[0]))
    texts = {error.split_message()[1] for error in errors}
    times = Counter(error.object for error in errors)
    # Several errors of one object are told apart by the subjects of their messages.
    names = (error.object if times[error.object] == 1 else error.split_message()[0] or error.object for error in errors)
    objects = tuple(dict.fromkeys(name for name in names if name is not None))
    return Cause(text=texts.pop() if len(texts) == 1 else key, objects=objects)
