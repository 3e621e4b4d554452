"""The task of each unit of work, and the names of the task runs. `flows.pool` submits the task of a unit from `TASKS`."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from prefect import Task

from prefect_dist.ocispec.units import format_count, size
from prefect_dist.tasks._task import argument, task_for
from prefect_dist.transfer import units

if TYPE_CHECKING:
    from prefect_dist.ocispec import Descriptor, Reference
    from prefect_dist.storage.store import Info
    from prefect_dist.transfer.audit import Expected
    from prefect_dist.transfer.survey import ImageQuery


def _resolve_name() -> str:
    return f"resolve {argument('reference')}"


def _fetch_name() -> str:
    descriptor: Descriptor = argument("descriptor")
    return f"fetch {descriptor.kind} {descriptor.digest.short}"


def _referrers_name() -> str:
    subject: Descriptor = argument("subject")
    return f"referrers of {subject.kind} {subject.digest.short}"


def _repositories_name() -> str:
    return f"repositories of {argument('host')}"


def _tags_name() -> str:
    repositories: tuple[Reference, ...] = argument("repositories")
    return f"tags of {repositories[0].locator if len(repositories) == 1 else f'{len(repositories)} repositories'}"


def _survey_name() -> str:
    queries: tuple[ImageQuery, ...] = argument("queries")
    return f"survey {queries[0].source if len(queries) == 1 else format_count(len(queries), 'image')}"


def _carry_name() -> str:
    descriptor: Descriptor = argument("descriptor")
    return f"mirror {descriptor.kind} {descriptor.digest.short}"


def _gate_name() -> str:
    return f"gate {argument('reference')}"


def _audit_name() -> str:
    expected: tuple[Expected, ...] = argument("expected")
    return f"audit {expected[0].target.locator}, {format_count(len(expected), 'tag')}"


def _locate_name() -> str:
    return f"locate {argument('origin')}"


def _remove_name() -> str:
    return f"remove {argument('target')}"


def _publish_name() -> str:
    return f"publish {argument('wanted').target}"


def _confirm_name() -> str:
    return f"confirm referrers in {argument('repository')}"


def _walk_name() -> str:
    work: units.ImageWork = argument("image")
    return f"image {work.name}"


def _verify_name() -> str:
    blobs: tuple[Info, ...] = argument("blobs")
    return f"verify {format_count(len(blobs), 'blob')}, {size(sum(info.size for info in blobs))}"


def _sweep_name() -> str:
    return "plan to sweep" if argument("dry_run") else "sweep"


def _unpack_name() -> str:
    return f"unpack {argument('name')}"


resolve = task_for(units.resolve, "resolve", run_name=_resolve_name)
fetch = task_for(units.fetch, "fetch", run_name=_fetch_name)
list_referrers = task_for(units.list_referrers, "referrers", run_name=_referrers_name)
list_repositories = task_for(units.list_repositories, "repositories", run_name=_repositories_name)
list_tags = task_for(units.list_tags, "tags", run_name=_tags_name)
survey = task_for(units.survey, "survey", run_name=_survey_name)
carry = task_for(units.carry, "mirror", run_name=_carry_name)
judge = task_for(units.judge, "gate", run_name=_gate_name)
publish = task_for(units.publish, "publish", run_name=_publish_name)
remove = task_for(units.remove, "remove", run_name=_remove_name)
audit = task_for(units.audit, "audit", run_name=_audit_name)
locate = task_for(units.locate, "locate", run_name=_locate_name)
confirm_referrers = task_for(units.confirm_referrers, "confirm-referrers", run_name=_confirm_name)
walk_image = task_for(units.walk_image, "image", run_name=_walk_name)
verify = task_for(units.verify, "verify", run_name=_verify_name)
sweep = task_for(units.sweep, "sweep", run_name=_sweep_name)
unpack = task_for(units.unpack, "unpack", run_name=_unpack_name)

TASKS: Mapping[Callable[..., Any], Task[..., Any]] = {
    units.resolve: resolve,
    units.fetch: fetch,
    units.list_referrers: list_referrers,
    units.list_repositories: list_repositories,
    units.list_tags: list_tags,
    units.survey: survey,
    units.carry: carry,
    units.judge: judge,
    units.publish: publish,
    units.remove: remove,
    units.audit: audit,
    units.locate: locate,
    units.confirm_referrers: confirm_referrers,
    units.walk_image: walk_image,
    units.verify: verify,
    units.sweep: sweep,
    units.unpack: unpack,
}
