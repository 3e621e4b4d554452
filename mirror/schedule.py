"""Schedules in a configuration: validated, but without effect. The schedule of a Prefect deployment starts runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from cronsim import CronSim, CronSimError

from prefect_dist.mirror.validation import located
from prefect_dist.ocispec import units
from prefect_dist.ocispec.errors import InvalidInput

_FIELDS = ("minute", "hour", "day", "month", "day of the week")
# Names that cron programs and regsync accept in place of five fields.
_NAMED = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_EVERY = "@every "


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A cron expression of five fields, or the seconds between two runs. `at` is its place in the configuration."""

    at: str
    cron: str | None = None
    interval_s: float | None = None

    @property
    def option(self) -> str:
        """Option of `prefect deployment schedule create` for the schedule."""
        return f"--interval {self.interval_s:g}" if self.cron is None else f"--cron '{self.cron}'"

    @classmethod
    def parse(cls, text: str, *, at: str) -> Self:
        """Return the schedule in a cron expression, a name such as `@daily`, or `@every 6h`.

        Raises:
            InvalidInput: the text is invalid.
        """
        if text.startswith(_EVERY):
            with located(at):
                return cls(at=at, interval_s=units.seconds(text.removeprefix(_EVERY).strip()))
        cron = _NAMED.get(text, text)
        if problem := _find_problem(cron.split()):
            form = "expected minute, hour, day, month and day of the week, such as '15 1 * * *'"
            raise InvalidInput(f"{form}, got {text!r}: {problem}", subject=at)
        return cls(at=at, cron=cron)


def list_idle_schedules(schedules: Sequence[Schedule]) -> list[str]:
    """Return a warning that the schedules start no run, with the command for the first schedule of the deployment."""
    if not schedules:
        return []
    first, others = schedules[0], len(schedules) - 1
    places = f"{first.at} and {others} more" if others else first.at
    have = "have" if others else "has"
    command = f"prefect deployment schedule create mirror/mirror {first.option}"
    return [f"{places}: {have} no effect: only the schedule of a deployment starts runs; to create one: {command}"]


def _find_problem(fields: Sequence[str]) -> str | None:
    """Return the mistake in the fields of a cron expression, or None."""
    count, expected = len(fields), len(_FIELDS)
    if count != expected:
        return f"{count} of {expected} fields"
    every = ["*"] * expected
    wrong = [name for at, name in enumerate(_FIELDS) if not _is_valid([*every[:at], fields[at], *every[at + 1 :]])]
    if wrong:
        return f"bad {', '.join(wrong)}"
    return None if _is_valid(fields) else "no month of the schedule has the day"


def _is_valid(fields: Sequence[str]) -> bool:
    try:
        CronSim(" ".join(fields).replace("?", "*"), datetime.now(UTC))
    except CronSimError:
        return False
    return True
