"""Schedules in a configuration. Another program starts the runs, such as Prefect."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from cronsim import CronSim, CronSimError

from prefect_dist.ocispec import units
from prefect_dist.ocispec.errors import InvalidInput

_FIELDS = 5
# What cron programs and regsync know beside five fields.
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
    """Either a cron expression of five fields, or the seconds between two runs. `at` is where the configuration says so."""

    at: str
    cron: str | None = None
    interval_s: float | None = None

    @property
    def option(self) -> str:
        """Return the option of `prefect deployment schedule create` for the schedule."""
        return f"--interval {self.interval_s:g}" if self.cron is None else f"--cron '{self.cron}'"

    @classmethod
    def parse(cls, text: str, *, at: str) -> Self:
        """Return the schedule of a cron expression, `@daily` and the like, or `@every 6h`.

        Raises:
            InvalidInput: it is none.
        """
        if text.startswith(_EVERY):
            try:
                return cls(at=at, interval_s=units.seconds(text.removeprefix(_EVERY).strip()))
            except InvalidInput as exc:
                raise InvalidInput(f"{at}: {exc}") from exc
        cron = _NAMED.get(text, text)
        problem = f"there are {len(cron.split())} fields" if len(cron.split()) != _FIELDS else _problem(cron)
        if problem:
            raise InvalidInput(
                f"{at}: expected minute, hour, day, month and day of the week, such as '15 1 * * *', got {text!r}: {problem}"
            )
        return cls(at=at, cron=cron)


def idle_schedules(schedules: Sequence[Schedule]) -> list[str]:
    """Return a warning that these schedules start no run, with the command for Prefect; none without schedules."""
    if not schedules:
        return []
    first, others = schedules[0], len(schedules) - 1
    places = f"{first.at} and {others} more" if others else first.at
    have = "have" if others else "has"
    likewise = "; likewise for the others" if others else ""
    how = f"prefect deployment schedule create mirror/mirror {first.option}{likewise}"
    return [f"{places}: {have} no effect: Prefect starts runs, by the schedule of a deployment; to make one: {how}"]


def _problem(cron: str) -> str | None:
    try:
        CronSim(cron.replace("?", "*"), datetime.now(UTC))
    except CronSimError as exc:
        return str(exc)[:1].lower() + str(exc)[1:]
    return None
