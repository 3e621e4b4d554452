"""Jobs for one source and one target: the copy of an image or repository, and the push of an image from the content store.

A copy and a push are mirror runs with one entry and without a lock file.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.naming import Naming
from prefect_dist.mirror.resources import RunResources
from prefect_dist.mirror.run import MirrorJob
from prefect_dist.mirror.run_spec import RunSpec
from prefect_dist.ocispec import Platform, Reference
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.ocispec.reference import expand, find_scheme, has_object
from prefect_dist.ocispec.schemes import STORE


def make_push_run(
    resources: RunResources,
    *,
    name: str,
    target: str,
    platform: str | None,
    sparse: bool,
    referrers: bool,
    concurrency: int,
    retries: int,
) -> RunSpec:
    """Return the run for the parameters of the flow `push`. The run is offline: the store is its only source.

    Raises:
        InvalidInput: a parameter is invalid.
        Unsupported: the platform is invalid, or the digest of a reference has an unknown algorithm.
    """
    job = make_push_job(name, target, platform=platform, sparse=sparse, referrers=referrers)
    session = replace(resources.make_session(), offline=True)
    return RunSpec(job=job, session=session, window=concurrency, retries=retries)


def make_copy_run(
    resources: RunResources,
    *,
    source: str,
    target: str,
    platforms: Literal["all"] | Sequence[str] = "all",
    rewrite_index: bool,
    referrers: bool,
    all_tags: bool,
    dry_run: bool,
    concurrency: int,
    retries: int,
) -> RunSpec:
    """Return the run for the parameters of the flow `copy`. A run whose source is a store name is offline.

    Raises:
        InvalidInput, Unsupported: a parameter is invalid.
    """
    job = make_copy_job(
        source,
        target,
        platforms=() if platforms == "all" else platforms,
        rewrite_index=rewrite_index,
        referrers=referrers,
        all_tags=all_tags,
        is_dry=dry_run,
    )
    session = replace(resources.make_session(), offline=job.has_stored_source)
    return RunSpec(job=job, session=session, window=concurrency, retries=retries)


def make_push_job(name: str, target: str, *, platform: str | None = None, sparse: bool = False, referrers: bool) -> MirrorJob:
    """Return the job that pushes the image with a store name to the reference `target`.

    Args:
        name: the name of the image in the content store.
        target: a reference.
        platform: the platform whose image the target gets instead of the index; None pushes the index.
        sparse: whether the target gets the index although the store has only some of its platforms.
        referrers: whether referrers and digest tags are pushed with the image.

    Raises:
        InvalidInput: the target is invalid, or both `platform` and `sparse` are given.
        Unsupported: the platform is invalid.
    """
    if platform is not None and sparse:
        raise InvalidInput("expected either one platform or a sparse index, got both; leave out one of the two")
    job = make_copy_job(f"{STORE}:{name}", target, referrers=referrers, flow="push")
    (entry,) = job.entries
    single = None if platform is None else Platform.parse(platform)
    return replace(job, entries=(replace(entry, single=single, is_sparse=sparse),))


def make_copy_job(
    source: str,
    target: str,
    *,
    platforms: Sequence[str] = (),
    rewrite_index: bool = False,
    referrers: bool = False,
    all_tags: bool = False,
    is_dry: bool = False,
    flow: Literal["copy", "push"] = "copy",
) -> MirrorJob:
    """Return the job that copies `source` to the reference `target`.

    Args:
        source: a reference, or `store:` and a name in the content store.
        target: a reference.
        platforms: the platforms to select from an index; empty selects every platform.
        rewrite_index: the target gets a new index of the selected platforms.
        referrers: whether referrers and digest tags are copied with the image.
        all_tags: whether `source` and `target` are repositories, and all tags are copied.
        is_dry: whether the run only makes the plan.
        flow: the name of the flow.

    Raises:
        InvalidInput: an argument is invalid.
        Unsupported: a platform is invalid, or the digest of a reference has an unknown algorithm.
    """
    if rewrite_index and not platforms:
        raise InvalidInput("a rewritten index requires platforms: select at least one platform")
    parse = _parse_repository if all_tags else _parse_image
    what: Literal["image", "repository"] = "repository" if all_tags else "image"
    if all_tags and find_scheme(source) == STORE:
        raise InvalidInput(f"source {source!r}: a name in the content store is one image; leave out --all-tags (all_tags)")
    entry = Entry(
        at=flow,
        source=parse(source),
        type=what,
        targets=(Naming.read(parse(target), at="target", what=what),),
        platforms=tuple(map(Platform.parse, platforms)) or None,
        rewrite_index=rewrite_index,
        referrers=referrers,
        digest_tags=referrers,
    )
    return MirrorJob(flow=flow, configuration=None, entries=(entry,), lock=None, is_dry=is_dry)


def _parse_image(text: str) -> str:
    """Return the reference in `text`, with a short name expanded and a digest checked."""
    reference = Reference.parse(expand(text))
    reference.pinned_digest()
    return str(reference)


def _parse_repository(text: str) -> str:
    """Return the locator of the repository in `text`, with a short name expanded."""
    reference = Reference.parse(expand(text))
    if has_object(text):
        raise InvalidInput(f"repository {text!r}: expected no tag or digest, as in {reference.locator}")
    return reference.locator
