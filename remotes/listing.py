"""Lists of names that come in pages: the tags of a repository, the repositories of a registry.

What they have in common: how pages are asked for, and what a registry cannot do with them to whoever reads.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlencode

import httpx

from ocispec import fields
from ocispec.errors import InvalidInput, Unsupported
from remotes import document
from remotes.errors import RegistryRefused
from remotes.headers import next_page
from remotes.paging import Trail
from remotes.repository import Repository
from remotes.sizes import SMALL_PAGE_NAMES

# More than any list is known to have; whoever goes on sends something else than a list.
MAX_NAMES, MAX_PAGES, MAX_BYTES = 1_000_000, 20_000, 64 * 1024 * 1024
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
        DistError: what the registry says.
    """
    trail = Trail(repository, at, accept="application/json", max_pages=MAX_PAGES)
    seen: set[str] = set()
    taken = 0
    number = repository.sizes.page_names
    url = _page(repository, kind, number)
    while True:
        response = trail.ask(url)
        try:
            raw = document.answered(response, at, limit=MAX_PAGE_BYTES)
        except RegistryRefused:
            if number is None or seen or response.status_code not in _TOO_MANY_NAMES:
                raise
            is_quay = response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE
            repository.sizes.page_names = number = SMALL_PAGE_NAMES if is_quay and number > SMALL_PAGE_NAMES else None
            url = _page(repository, kind, number)
            continue
        taken += len(raw)
        page = read(raw, kind, at=at)
        new = [name for name in dict.fromkeys(page) if name not in seen]
        seen.update(new)
        if len(seen) > MAX_NAMES or taken > MAX_BYTES:
            raise Unsupported(f"{at}: expected at most {MAX_NAMES} in {MAX_BYTES} bytes, there are more")
        yield from new
        following = next_page(response, at)
        if following is None and new and len(page) == number:
            following = _page(repository, kind, number, last=page[-1])  # not every registry names the next page; this was full
        if following is None:
            return
        if page and not new:
            raise Unsupported(f"{at}: a page has nothing but what came before it, and is said not to be the last")
        url = following


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
