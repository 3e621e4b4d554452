"""Referrers of a manifest: the API and its fallback tags (distribution-spec 1.1, "Listing Referrers").

Also cosign's digest tags, which predate the API.
"""

import contextlib
import logging
import re
from collections.abc import Container, Iterator
from typing import Protocol
from urllib.parse import urlencode

import httpx

from prefect_dist.ocispec import Descriptor, Digest, Reference, manifest, mediatypes
from prefect_dist.ocispec.errors import InvalidInput, Unavailable, Unsupported
from prefect_dist.ocispec.referrers import MAX_REFERRERS, cosign_tags, fallback_tag, is_index
from prefect_dist.remotes import document
from prefect_dist.remotes.errors import RegistryError, RegistryNotFound, from_response, redact
from prefect_dist.remotes.headers import ANY_MANIFEST, MEDIA_TYPE, next_page
from prefect_dist.remotes.listing import Paginator
from prefect_dist.remotes.repository import Repository

_log = logging.getLogger(__name__)
# The pages of one list. A longer list is a mistake or an attack, and an error.
MAX_PAGES = 100
# Statuses of registries without the API: 404 in the specification, others in practice (go-containerregistry: 400 and 406).
_NO_API = frozenset({400, 404, 405, 406, 501})
_INCONCLUSIVE = frozenset({400, 406})  # the API may exist for other subjects
_DENIED = frozenset({401, 403})
# The path of the API at any registry, which may be the target of a redirect.
_REFERRERS_PATH = re.compile(r"/v2/.+/referrers/[^/]+")
_UNKNOWN_REPOSITORY = "NAME_UNKNOWN"


class _Resolver(Protocol):
    def resolve(self, reference: Reference) -> Descriptor:
        """Return the descriptor of a tag."""


def list_referrers(
    repository: Repository, subject: Digest, *, artifact_type: str | None, no_referrers_api: set[str]
) -> Iterator[Descriptor]:
    """Yield the referrers of `subject`, each once, from the API or, without an API, from the fallback tag.

    A host without the API is added to `no_referrers_api`; the API is not requested from these hosts again.

    Raises:
        InvalidInput: `artifact_type` is not a media type. Other errors are raised while iterating.
    """
    if artifact_type is not None and not MEDIA_TYPE.fullmatch(artifact_type):
        raise InvalidInput(f"referrers of {subject}: bad artifact type {artifact_type!r}, expected type/subtype")
    return _drop_duplicates(_read_all(repository, subject, artifact_type, no_referrers_api), repository, subject)


def read_fallback_index(repository: Repository, subject: Digest) -> bytes | None:
    """Return the index under the fallback tag for the referrers of `subject`; None if there is no such tag.

    Raises:
        Unsupported: the tag has other content, such as the subject: GitLab takes the tag for a digest (oras-go #1396).
    """
    raw = _read_fallback_tag(repository, subject)
    if raw is not None and not _is_fallback_index(raw, subject):
        at = _tag_name(repository, subject)
        raise Unsupported(f"expected an OCI index of referrers of {subject}, the tag has other content", subject=at)
    return raw


def signatures(
    source: _Resolver, locator: str, subject: Digest, *, tags: Container[str] | None
) -> Iterator[tuple[str, Descriptor]]:
    """Yield cosign's existing digest tags of `subject` with their descriptors; only from `tags`, if given."""
    for tag in cosign_tags(subject):
        if tags is not None and tag not in tags:
            continue
        try:
            found = source.resolve(Reference.parse(f"{locator}:{tag}"))
        except RegistryNotFound:
            continue
        yield tag, found


def _read_all(
    repository: Repository, subject: Digest, artifact_type: str | None, no_referrers_api: set[str]
) -> Iterator[Descriptor]:
    host = repository.locator.partition("/")[0]
    at = f"referrers of {subject} at {repository.locator}"
    paginator = Paginator(repository, at, accept=mediatypes.OCI_INDEX, max_pages=MAX_PAGES)
    page = refusal = None
    if host not in no_referrers_api and "referrers" not in repository.unsupported:
        query = "" if artifact_type is None else f"?{urlencode({'artifactType': artifact_type})}"
        response = paginator.get(repository.url_of(f"referrers/{subject}{query}"))
        if response.is_success or repository.owns(response.request.url):
            page = _first_page(response, at=at, artifact_type=artifact_type, host=host, no_referrers_api=no_referrers_api)
        else:
            refusal = _refusal_elsewhere(response, at)
    if page is None:
        found = _list_fallback_tag(repository, subject, artifact_type)
        if refusal is not None and not found:
            raise refusal
        yield from found
        return
    yield from page.entries
    while page.following is not None:
        page = _later_page(paginator.get(page.following), at=at, artifact_type=artifact_type)
        yield from page.entries


def _refusal_elsewhere(response: httpx.Response, at: str) -> RegistryError | None:
    """Return the error of a redirected and failed query, to be raised unless the fallback tag lists referrers.

    None means: only the fallback tag counts. A busy or failing registry may have referrers (registry.k8s.io redirects to
    several registries), so the error counts. GHCR has no API, and redirects some queries to a rate-limited interface of GitHub,
    not a registry; clients of GHCR keep referrers under the fallback tag.

    Raises:
        RegistryError: another registry answers with an error that allows neither conclusion.
    """
    with contextlib.closing(response):
        error = from_response(at, response)
        url, status = response.request.url, response.status_code
    if _REFERRERS_PATH.fullmatch(url.path):
        if error.retryable:
            return error
        if status not in _NO_API | _DENIED:
            raise error
    _log.warning(
        "%s: the registry redirected the query to %s, which answered %d; only the fallback tag is read", at, redact(url), status
    )
    return None


class _Page:
    """One page of the API: its entries, filtered, and the URL of the next page."""

    def __init__(self, response: httpx.Response, raw: bytes, *, at: str, artifact_type: str | None) -> None:
        entries = manifest.children(raw, mediatypes.OCI_INDEX, at=at)
        applied = [name.strip() for name in response.headers.get("oci-filters-applied", "").split(",")]
        self.entries = entries if "artifactType" in applied else _filter_by_type(entries, artifact_type)
        self.following = next_page(response, at)


def _first_page(
    response: httpx.Response, *, at: str, artifact_type: str | None, host: str, no_referrers_api: set[str]
) -> _Page | None:
    """Return the first page; None if the registry has no API."""
    try:
        raw = document.read_document(response, at)
    except RegistryError as exc:
        if response.status_code not in _NO_API:
            raise
        if response.status_code not in _INCONCLUSIVE and not _is_unknown_repository(exc):
            no_referrers_api.add(host)
        return None
    if not is_index(raw):  # for example a web interface that answers every path
        no_referrers_api.add(host)
        return None
    return _Page(response, raw, at=at, artifact_type=artifact_type)


def _later_page(response: httpx.Response, *, at: str, artifact_type: str | None) -> _Page:
    raw = document.read_document(response, at)
    if not is_index(raw):
        raise Unavailable("expected an OCI index as next page, got another document", subject=at)
    return _Page(response, raw, at=at, artifact_type=artifact_type)


def _list_fallback_tag(repository: Repository, subject: Digest, artifact_type: str | None) -> tuple[Descriptor, ...]:
    raw = _read_fallback_tag(repository, subject)
    if raw is None or not _is_fallback_index(raw, subject):
        return ()
    return _filter_by_type(manifest.children(raw, mediatypes.OCI_INDEX, at=_tag_name(repository, subject)), artifact_type)


def _read_fallback_tag(repository: Repository, subject: Digest) -> bytes | None:
    """Return the document under the fallback tag, of any type; None if there is no such tag."""
    at = _tag_name(repository, subject)
    # Any type is accepted, so that a document other than an index is found and recognized.
    response = repository.send_read("GET", f"manifests/{fallback_tag(subject)}", subject=at, headers={"Accept": ANY_MANIFEST})
    if response.status_code == httpx.codes.NOT_FOUND:
        response.close()
        return None
    return document.read_document(response, at)


def _is_fallback_index(raw: bytes, subject: Digest) -> bool:
    return is_index(raw) and Digest.of(raw, algorithm=subject.algorithm) != subject


def _tag_name(repository: Repository, subject: Digest) -> str:
    return f"{repository.locator}:{fallback_tag(subject)}"


def _drop_duplicates(found: Iterator[Descriptor], repository: Repository, subject: Digest) -> Iterator[Descriptor]:
    """Yield each referrer once, without the subject.

    Raises:
        Unsupported: the list has too many referrers.
    """
    seen = {subject}
    for one in found:
        if one.digest in seen:
            continue
        seen.add(one.digest)
        if len(seen) > MAX_REFERRERS + 1:
            at = f"referrers of {subject} at {repository.locator}"
            raise Unsupported(f"expected at most {MAX_REFERRERS}, there are more", subject=at)
        yield one


def _filter_by_type(entries: tuple[Descriptor, ...], artifact_type: str | None) -> tuple[Descriptor, ...]:
    return entries if artifact_type is None else tuple(one for one in entries if one.artifact_type == artifact_type)


def _is_unknown_repository(error: RegistryError) -> bool:
    """Return True if the repository is missing, which proves nothing about the API (as in oras-go)."""
    return any(code.partition(":")[0] == _UNKNOWN_REPOSITORY for code in error.exchange.codes)
