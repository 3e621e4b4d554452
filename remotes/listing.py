"""Lists in pages: the tags of a repository and the repositories of a registry, with limits that protect the client.

Follows distribution-spec 1.1, "Listing Tags", and "Catalog" of Docker's registry API v2. Pages are linked by RFC 8288.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlencode

import httpx

from prefect_dist.ocispec import fields
from prefect_dist.ocispec.errors import InvalidInput, Unavailable, Unsupported
from prefect_dist.ocispec.reference import is_repository, is_tag
from prefect_dist.remotes import document
from prefect_dist.remotes.errors import RegistryDenied, RegistryNotFound, RegistryRefused, with_message
from prefect_dist.remotes.headers import next_page
from prefect_dist.remotes.repository import Repository
from prefect_dist.remotes.sizes import SMALL_PAGE_NAMES
from prefect_dist.remotes.throttled import waited_s

# Limits of one list, above the length of any known list.
MAX_NAMES, MAX_PAGES, MAX_BYTES = 1_000_000, 10_000, 64 * 1024 * 1024
# The time for all requests of one list without the delays of the throttle, and successive pages without a new name.
MAX_SECONDS, MAX_EMPTY_PAGES = 300.0, 100
# The size of one page, which is parsed as a whole: empty JSON lists take forty times their size in Python.
MAX_PAGE_BYTES = 8 * 1024 * 1024
_SHOWN_CHARS = 140
# Statuses for too many names per page: 400 from CNCF distribution (maxentries), 413 from Quay.
_TOO_MANY_NAMES = frozenset({400, 413})


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingKind:
    """A kind of list: its path, its key in a page, the singular for messages, and the grammar of its names."""

    path: str
    key: str
    singular: str
    is_name: Callable[[str], bool]
    grammar: str


TAGS = ListingKind(path="tags/list", key="tags", singular="tag", is_name=is_tag, grammar="1 to 128 letters, digits and . _ -")
REPOSITORIES = ListingKind(
    path="_catalog",
    key="repositories",
    singular="repository",
    is_name=is_repository,
    grammar="lower-case letters, digits and . _ - / between them",
)
# "registry" is the type and "catalog" the name of the resource ("Token Scope Documentation" of distribution).
CATALOG_SCOPE = "registry:catalog:*"
# Registries without a catalog, or with a catalog only for administrators: Docker Hub answers 401, GHCR 403, others 404 or 405.
_NOT_SHOWN = frozenset({401, 403, 404, 405})


def list_tags(repository: Repository) -> Iterator[str]:
    """Yield the tags of a repository, each once, in the registry's order. Pages are requested as the caller reads on.

    Raises:
        DistError: see `list_names`.
    """
    return list_names(repository, TAGS, at=f"tags of {repository.locator}")


def list_repositories(registry: Repository, *, prefix: str = "") -> Iterator[str]:
    """Yield the repositories of a registry (Docker's registry API v2, "Catalog"), each once, in the registry's order.

    Only repositories that begin with `prefix` are yielded, without the prefix.

    Raises:
        RegistryDenied, RegistryNotFound, RegistryRefused: the registry has no catalog, or not for this user.
        DistError: see `list_names`.
    """
    try:
        for name in list_names(registry, REPOSITORIES, at=f"repositories of {registry.locator}"):
            if name.startswith(prefix) and name != prefix:
                yield name.removeprefix(prefix)
    except (RegistryDenied, RegistryNotFound, RegistryRefused) as exc:
        if exc.exchange.status not in _NOT_SHOWN:
            raise
        remedy = "the registry has no list of repositories for this user: name the repositories instead"
        raise with_message(exc, f"{exc.message}; {remedy}", subject=exc.subject) from exc


def list_names(repository: Repository, kind: ListingKind, *, at: str) -> Iterator[str]:
    """Yield the names in a list, each once, in the registry's order. Pages are requested as the caller reads on.

    `at` names the list in errors.

    Raises:
        RegistryNotFound: the registry has no such list.
        InvalidInput: a page is not a list of such names.
        Unsupported: the list is too long, repeats itself, or continues at another server.
        Unavailable: the requests take too long.
        DistError: another error of the registry.
    """
    paginator = Paginator(repository, at, accept="application/json", max_pages=MAX_PAGES)
    progress = _Progress(at)
    number = repository.sizes.page_names
    url = _page_url(repository, kind, number)
    while True:
        with progress.time_request():
            response = paginator.get(url)
            progress.exclude(waited_s(response))
            try:
                raw = document.read_document(response, at, limit=MAX_PAGE_BYTES, check=progress.check_time)
            except RegistryRefused:
                if number is None or progress.seen or response.status_code not in _TOO_MANY_NAMES:
                    raise
                is_quay = response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE
                repository.sizes.page_names = number = SMALL_PAGE_NAMES if is_quay and number > SMALL_PAGE_NAMES else None
                url = _page_url(repository, kind, number)
                continue
        page = read_page(raw, kind, at=at)
        new = progress.add(page, len(raw))
        yield from new
        following = next_page(response, at)
        if following is None and new and len(page) == number:
            following = _page_url(
                repository, kind, number, last=page[-1]
            )  # this page was full, and not every registry names the next page
        if following is None:
            return
        if page and not new:
            raise Unsupported("a page has only names of earlier pages, and links to another page", subject=at)
        progress.check()
        url = following


class Paginator:
    """Requests the pages of one list: only from its registry, no page twice, and at most `max_pages`.

    Each page names the next one in a Link header (distribution-spec 1.1; RFC 8288). `subject` names the list in errors.
    """

    def __init__(self, repository: Repository, subject: str, *, accept: str, max_pages: int) -> None:
        self._repository, self._subject, self._accept, self._max_pages = repository, subject, accept, max_pages
        self._asked: set[httpx.URL] = set()

    def get(self, url: httpx.URL) -> httpx.Response:
        """Return the open response for the first page, or for the page that the last page named as next.

        Raises:
            Unsupported: the URL is at another server or was requested before, or there are too many pages.
            DistError: as `Repository.send_read`.
        """
        if not self._repository.owns(url):
            raise Unsupported("the next page is on another server; the link is not followed", subject=self._subject)
        if url in self._asked:
            raise Unsupported("the pages link in a circle", subject=self._subject)
        if len(self._asked) == self._max_pages:
            raise Unsupported(f"expected at most {self._max_pages} pages, there are more", subject=self._subject)
        self._asked.add(url)
        return self._repository.send_read("GET", url, subject=self._subject, headers={"Accept": self._accept})


class _Progress:
    """The part of one list that was received, and the limits."""

    def __init__(self, at: str) -> None:
        self.seen: set[str] = set()
        self._at = at
        self._bytes = self._pages = self._empty_pages = 0
        self._seconds = 0.0  # of finished requests, without the excluded delays
        self._began: float | None = None  # start of the request in flight

    @contextmanager
    def time_request(self) -> Iterator[None]:
        """Count the time of this block as time of the requests. The time of the caller between pages does not count."""
        self._began = time.monotonic()
        try:
            yield
        finally:
            self._seconds += time.monotonic() - self._began
            self._began = None

    def exclude(self, seconds: float) -> None:
        """Subtract the time for which the throttle of this client delayed a request."""
        self._seconds -= seconds

    def check_time(self) -> None:
        """Check the time of all requests so far; also called while a page is read.

        Raises:
            Unavailable: the requests took too long. The registry may be faster later.
        """
        seconds = self._seconds + (0.0 if self._began is None else time.monotonic() - self._began)
        if seconds > MAX_SECONDS:
            received = f"{len(self.seen)} names in {self._pages} pages"
            remedy = "try again, or name the wanted items instead of listing all"
            raise Unavailable(f"expected the whole list within {MAX_SECONDS:g} s, got {received}; {remedy}", subject=self._at)

    def add(self, page: tuple[str, ...], size: int) -> list[str]:
        """Return the names of a page that are new.

        Raises:
            Unsupported: the list is too long.
        """
        new = [name for name in dict.fromkeys(page) if name not in self.seen]
        self.seen.update(new)
        self._bytes += size
        self._pages += 1
        self._empty_pages = 0 if new else self._empty_pages + 1
        if len(self.seen) > MAX_NAMES or self._bytes > MAX_BYTES:
            raise Unsupported(f"expected at most {MAX_NAMES} names in {MAX_BYTES} bytes, got more", subject=self._at)
        return new

    def check(self) -> None:
        """Check whether another page may be requested.

        Raises:
            Unsupported: too many pages in a row had no new name.
            Unavailable: the requests took too long.
        """
        if self._empty_pages >= MAX_EMPTY_PAGES:
            raise Unsupported(
                f"{MAX_EMPTY_PAGES} pages in a row have no new name, and the last links to another page",
                subject=self._at,
            )
        self.check_time()


def read_page(raw: bytes, kind: ListingKind, *, at: str) -> tuple[str, ...]:
    """Return the names in one page. `at` names the list in errors. Some registries send null for an empty list.

    Raises:
        InvalidInput: the page is not a list of such names.
    """
    found = fields.parse_object(raw, at=at)
    if kind.key not in found:
        raise InvalidInput(f"expected a list under the key {kind.key}, the key is missing", subject=at)
    listed = fields.strings(found, kind.key, at=at)
    for name in listed:
        if not kind.is_name(name):  # the name could contain terminal codes or a path
            raise InvalidInput(f"bad {kind.singular} {name[:_SHOWN_CHARS]!a}, expected {kind.grammar}", subject=at)
    return listed


def _page_url(repository: Repository, kind: ListingKind, number: int | None, *, last: str | None = None) -> httpx.URL:
    query = {name: value for name, value in (("n", number), ("last", last)) if value is not None}
    return repository.url_of(f"{kind.path}?{urlencode(query)}" if query else kind.path)
