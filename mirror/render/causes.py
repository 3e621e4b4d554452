"""Errors, grouped by cause.

If a registry is down or refuses a password, each image of the registry fails with the same cause, see `DistError.cause`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from prefect_dist.mirror.report import RunError


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
        groups.setdefault(error.error.cause, []).append(error)
    return [_cause(key, found) for key, found in groups.items()]


def _cause(key: str, errors: Sequence[RunError]) -> Cause:
    if len(errors) == 1:
        return Cause(text=str(errors[0]))
    is_shared = len({error.error.subject for error in errors}) == 1  # such as a file that all objects need
    texts = {str(error.error) if is_shared else error.error.message for error in errors}
    times = Counter(error.object for error in errors)
    # The subjects distinguish several errors of one object.
    names = (error.object if times[error.object] == 1 else error.error.subject or error.object for error in errors)
    objects = tuple(dict.fromkeys(name for name in names if name is not None))
    return Cause(text=texts.pop() if len(texts) == 1 else key, objects=objects)
