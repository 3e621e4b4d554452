"""The task of each unit of work. `flows.pool` submits the task of a unit from this table."""

from collections.abc import Callable, Mapping
from typing import Any

from prefect import Task

from prefect_dist.tasks import fetch, mirror, upkeep
from prefect_dist.transfer import units

TASKS: Mapping[Callable[..., Any], Task[..., Any]] = {
    units.resolve: fetch.resolve,
    units.fetch: fetch.fetch,
    units.list_referrers: fetch.list_referrers,
    units.list_repositories: mirror.list_repositories,
    units.list_tags: mirror.list_tags,
    units.survey: mirror.survey,
    units.carry: mirror.carry,
    units.check_target: mirror.check_target,
    units.upload: mirror.upload,
    units.judge: mirror.judge,
    units.publish: mirror.publish,
    units.remove: mirror.remove,
    units.audit: mirror.audit,
    units.locate: mirror.locate,
    units.confirm_referrers: mirror.confirm_referrers,
    units.verify: upkeep.verify,
    units.sweep: upkeep.sweep,
    units.unpack: upkeep.unpack,
}
