"""Limits that an operator sets in Prefect on what reaches one registry: a concurrency limit on the tag `registry:<host>`.

Prefect asks for a slot for every task run that has tags, one after the other, whether or not there is a limit: measured, that
makes a flow of small tasks three times as slow (docs/dev/adr/0004). So tasks are tagged where there is a limit to be kept,
which is asked once per run and registry.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

from prefect import Task
from prefect.exceptions import ObjectNotFound

from prefect_dist.flows.api import brief, client


class Limits:
    """One run's tasks, made ready: with its number of retries, and tagged for the registries on which there is a limit."""

    def __init__(self, *, retries: int) -> None:
        self._tags = cache(_tags)
        self._ready = cache(lambda task, hosts: task.with_options(retries=retries, tags=self._tags_of(hosts)))

    def ready(self, task: Task[..., Any], *hosts: str) -> Task[..., Any]:
        """Return a task that sends requests to the registries of some hosts."""
        ready: Task[..., Any] = self._ready(task, frozenset(hosts))
        return ready

    def _tags_of(self, hosts: Iterable[str]) -> frozenset[str]:
        return frozenset(tag for host in hosts for tag in self._tags(host))


def _tags(host: str) -> frozenset[str]:
    """The tags of tasks that talk to the registry of `host`: `registry:<host>` if there is a limit on it, else none."""
    tag = f"registry:{host}"
    try:
        with brief():
            client().read_concurrency_limit_by_tag(tag)
    except ObjectNotFound:
        return frozenset()
    return frozenset({tag})
