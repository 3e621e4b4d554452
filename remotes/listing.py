"""Lists of names that come in pages: the tags of a repository, the repositories of a registry.

What they have in common: how pages are asked for, and what a registry cannot do with them to whoever reads.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlencode

import httpx

from prefect_dist.ocispec import fields
from prefect_dist.ocispec.errors import InvalidInput, Unavailable, Unsupported
from prefect_dist.remotes import document
from prefect_dist.remotes.errors import RegistryRefused
from prefect_dist.remotes.headers import next_page
from prefect_dist.remotes.paging import Trail
from prefect_dist.remotes.repository import Repository
from prefect_dist.remotes.sizes import SMALL_PAGE_NAMES
from prefect_dist.remotes.throttled import waited_s

# More than any known list has.
MAX_NAMES, MAX_PAGES, MAX_BYTES = 1_000_000, 10_000, 64 * 1024 * 1024
# The time for all requests of one list without the waits for turns, and the pages in a row without a new name.
MAX_SECONDS, MAX_EMPTY_PAGES = 300.0, 100
# Of one page, which is read as a whole: if it has nothing but empty lists in it, Python's take forty times its size.
MAX_PAGE_BYTES = 8 * 1024 * 1024
_SHOWN_CHARS = 140
# The answers to a number of names that is too high: 400 by CNCF distribution (maxentries), 413 by Quay.
_TOO_MANY_NAMES = frozenset({400, 413})


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What is listed: where, under which key of an answer, and what a name of it is, by a test and in words."""

    path: str
    key: str
    one: str
    is_name: Callable[[str], bool]
    grammar: str


def names(repository: Repository, kind: Kind, *, at: str) -> Iterator[str]:
    """All names in a list, each once, in the registry's order; a page is asked for when those before it are taken.

    `at` is what errors call the list.

    Raises:
        RegistryNotFound: there is no such list.
        InvalidInput: what the registry sends is no list of such names.
        Unsupported: a list without end, that repeats itself, or that leads away from the registry.
        Unavailable: the requests take too long.
        DistError: what the registry says.
    """
    trail = Trail(repository, at, accept="application/json", max_pages=MAX_PAGES)
    progress = _Progress(at)
    number = repository.sizes.page_names
    url = _page(repository, kind, number)
    while True:
        with progress.timed():
            response = trail.ask(url)
            progress.exclude(waited_s(response))
            try:
                raw = document.answered(response, at, limit=MAX_PAGE_BYTES, check=progress.check_time)
            except RegistryRefused:
                if number is None or progress.seen or response.status_code not in _TOO_MANY_NAMES:
                    raise
                is_quay = response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE
                repository.sizes.page_names = number = SMALL_PAGE_NAMES if is_quay and number > SMALL_PAGE_NAMES else None
                url = _page(repository, kind, number)
                continue
        page = read(raw, kind, at=at)
        new = progress.add(page, len(raw))
        yield from new
        following = next_page(response, at)
        if following is None and new and len(page) == number:
            following = _page(repository, kind, number, last=page[-1])  # not every registry names the next page; this was full
        if following is None:
            return
        if page and not new:
            raise Unsupported(f"{at}: a page has nothing but what came before it, and is said not to be the last")
        progress.check()
        url = following


class _Progress:
    """What was received of one list, and its limits."""

    def __init__(self, at: str) -> None:
        self.seen: set[str] = set()
        self._at = at
        self._bytes = self._pages = self._empty_pages = 0
        self._seconds = 0.0  # of the requests that ended, less the waits that are excluded
        self._began: float | None = None  # the present request

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time of a request. The time of the reader between pages does not count."""
        self._began = time.monotonic()
        try:
            yield
        finally:
            self._seconds += time.monotonic() - self._began
            self._began = None

    def exclude(self, seconds: float) -> None:
        """Do not count the time for which our own throttle held a request back."""
        self._seconds -= seconds

    def check_time(self) -> None:
        """Check the time of all requests so far, also while a page is read.

        Raises:
            Unavailable: the requests took too long. The registry may be faster later.
        """
        seconds = self._seconds + (0.0 if self._began is None else time.monotonic() - self._began)
        if seconds > MAX_SECONDS:
            so_far = f"{len(self.seen)} names in {self._pages} pages so far"
            raise Unavailable(
                f"{self._at}: expected the whole list within {MAX_SECONDS:g} s, got {so_far}; try again, or name what is wanted"
            )

    def add(self, page: tuple[str, ...], size: int) -> list[str]:
        """The names of a page that are new.

        Raises:
            Unsupported: the list is too long.
        """
        new = [name for name in dict.fromkeys(page) if name not in self.seen]
        self.seen.update(new)
        self._bytes += size
        self._pages += 1
        self._empty_pages = 0 if new else self._empty_pages + 1
        if len(self.seen) > MAX_NAMES or self._bytes > MAX_BYTES:
            raise Unsupported(f"{self._at}: expected at most {MAX_NAMES} in {MAX_BYTES} bytes, there are more")
        return new

    def check(self) -> None:
        """See whether another page may be requested.

        Raises:
            Unsupported: the requests brought nothing.
            Unavailable: the requests took too long.
        """
        if self._empty_pages >= MAX_EMPTY_PAGES:
            raise Unsupported(f"{self._at}: {MAX_EMPTY_PAGES} pages in a row are empty, and the last is said not to be the end")
        self.check_time()


def read(raw: bytes, kind: Kind, *, at: str) -> tuple[str, ...]:
    """The names in one answer, called `at` in errors; null, which some registries send for none, is none.

    Raises:
        InvalidInput: it is no list of such names.
    """
    found = fields.parse_object(raw, at=at)
    if kind.key not in found:
        raise InvalidInput(f"{at}: expected a list under the key {kind.key}, there is none")
    listed = fields.strings(found, kind.key, at=at)
    for name in listed:
        if not kind.is_name(name):  # which may be meant for a terminal, or a path
            raise InvalidInput(f"{at}: bad {kind.one} {name[:_SHOWN_CHARS]!a}, expected {kind.grammar}")
    return listed


def _page(repository: Repository, kind: Kind, number: int | None, *, last: str | None = None) -> httpx.URL:
    query = {name: value for name, value in (("n", number), ("last", last)) if value is not None}
    return repository.at(f"{kind.path}?{urlencode(query)}" if query else kind.path)
