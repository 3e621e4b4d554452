"""The jobs of copies and pushes: sources, targets and invalid arguments."""

from typing import Any

import pytest

from prefect_dist.mirror.copying import make_copy_job, make_push_job
from prefect_dist.mirror.run import MirrorJob
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import InvalidInput

TARGET = "registry.example/team/app"


def targets_of(job: MirrorJob, source: Reference) -> list[str]:
    (entry,) = job.entries
    return list(map(str, entry.list_targets(source)))


@pytest.mark.parametrize(
    ("source", "image"),
    [
        ("redis", "docker.io/library/redis:latest"),
        ("ghcr.io/org/tool:v1", "ghcr.io/org/tool:v1"),
        (f"ghcr.io/org/tool@sha256:{'0' * 64}", f"ghcr.io/org/tool@sha256:{'0' * 64}"),
        ("store:app", "store:app"),
        ("store:Release 7", "store:Release 7"),
        ("store:ghcr.io/org/tool:v1", "store:ghcr.io/org/tool:v1"),
    ],
)
def test_a_source_is_a_reference_or_a_store_name(source: str, image: str) -> None:
    job = make_copy_job(source, TARGET)
    (entry,) = job.entries
    assert str(entry.image) == image
    assert job.has_stored_source == source.startswith("store:")
    assert targets_of(job, entry.image) == [f"{TARGET}:latest"]
    assert job.target_hosts == {"registry.example"}


def test_a_repository_keeps_the_tags_of_its_images() -> None:
    job = make_copy_job("redis", TARGET, all_tags=True)
    assert (job.entries[0].type, job.entries[0].source) == ("repository", "docker.io/library/redis")
    assert targets_of(job, Reference.parse("docker.io/library/redis:7")) == [f"{TARGET}:7"]


def test_a_push_is_a_copy_of_a_store_name() -> None:
    push, copy = make_push_job("app", TARGET, referrers=True), make_copy_job("store:app", TARGET, referrers=True)
    assert [job.flow for job in (push, copy)] == ["push", "copy"]
    assert [(job.entries[0].source, job.entries[0].type) for job in (push, copy)] == [("store:app", "image")] * 2
    assert push.entries[0].comparable_options(None) == copy.entries[0].comparable_options(None)
    assert (push.lock, push.name) == (None, "push")


@pytest.mark.parametrize(
    ("source", "target", "options", "message"),
    [
        ("https://redis", TARGET, {}, "leave out the scheme https://"),
        ("redis", "UPPER/", {}, "bad path"),
        ("redis", f"{TARGET}@sha256:12", {}, "expected 64 characters"),
        (
            "redis:7",
            TARGET,
            {"all_tags": True},
            "repository 'redis:7': expected no tag or digest, as in docker.io/library/redis",
        ),
        ("redis", f"{TARGET}:v1", {"all_tags": True}, "expected no tag or digest"),
        ("store:app", TARGET, {"all_tags": True}, "source 'store:app': a name in the content store is one image"),
        ("store:", TARGET, {}, r"reference 'store:': expected a name \(dist names lists the names in the store\) after store:"),
        ("redis", TARGET, {"rewrite_index": True}, "a rewritten index requires platforms"),
        ("redis", TARGET, {"platforms": ["x"]}, "platform 'x'"),
    ],
)
def test_an_invalid_argument_is_refused(source: str, target: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make_copy_job(source, target, **options)
