"""The tasks of a mirror and a push: list, compare, upload, ask gates, publish, remove, audit, confirm."""

from typing import TYPE_CHECKING

from prefect_dist.ocispec.units import format_count
from prefect_dist.tasks._task import argument, task_for
from prefect_dist.transfer import units

if TYPE_CHECKING:
    from prefect_dist.ocispec import Descriptor, Reference
    from prefect_dist.transfer.audit import Expected


def _repositories_name() -> str:
    return f"repositories of {argument('host')}"


def _tags_name() -> str:
    repositories: tuple[Reference, ...] = argument("repositories")
    return f"tags of {repositories[0].locator if len(repositories) == 1 else f'{len(repositories)} repositories'}"


def _survey_name() -> str:
    return f"survey {format_count(len(argument('queries')), 'image')}"


def _carry_name() -> str:
    descriptor: Descriptor = argument("descriptor")
    return f"mirror {descriptor.kind} {descriptor.digest.short}"


def _target_name() -> str:
    return f"resolve {argument('target')}"


def _upload_name() -> str:
    descriptor: Descriptor = argument("descriptor")
    return f"{'read' if descriptor.is_manifest else 'push'} {descriptor.kind} {descriptor.digest.short}"


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


list_repositories = task_for(units.list_repositories, "repositories", run_name=_repositories_name)
list_tags = task_for(units.list_tags, "tags", run_name=_tags_name)
survey = task_for(units.survey, "survey", run_name=_survey_name)
carry = task_for(units.carry, "mirror", run_name=_carry_name)
check_target = task_for(units.check_target, "resolve", run_name=_target_name)
upload = task_for(units.upload, "push", run_name=_upload_name)
judge = task_for(units.judge, "gate", run_name=_gate_name)
publish = task_for(units.publish, "publish", run_name=_publish_name)
remove = task_for(units.remove, "remove", run_name=_remove_name)
audit = task_for(units.audit, "audit", run_name=_audit_name)
locate = task_for(units.locate, "locate", run_name=_locate_name)
confirm_referrers = task_for(units.confirm_referrers, "confirm-referrers", run_name=_confirm_name)
