"""Limits that an operator sets in Prefect on what reaches one registry: a concurrency limit on the tag `registry:<host>`.

Prefect asks for a slot for every task run that has tags, one after the other, whether or not there is a limit: measured, that
makes a flow of small tasks three times as slow (docs/adr/0004). So tasks are tagged where there is a limit to be kept, which is
asked once per run and registry.
"""

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound


def tags_of(host: str) -> frozenset[str]:
    """The tags of tasks that talk to the registry of `host`: `registry:<host>` if there is a limit on it, else none."""
    tag = f"registry:{host}"
    with get_client(sync_client=True) as client:
        try:
            client.read_concurrency_limit_by_tag(tag)
        except ObjectNotFound:
            return frozenset()
    return frozenset({tag})
