"""The tags of a repository (distribution-spec 1.1, "Listing Tags")."""

from collections.abc import Iterator
from urllib.parse import urlencode

from ocispec import fields
from ocispec.errors import InvalidInput, Unsupported
from ocispec.reference import is_tag
from remotes import document
from remotes.headers import next_page
from remotes.paging import Trail
from remotes.repository import Repository

# So many are asked for at once, which registries take for more or less: the CNCF registry 2.8 sends all there are.
PAGE_TAGS = 1000
# More than any repository is known to have; whoever goes on sends something else than a list.
MAX_TAGS, MAX_PAGES, MAX_BYTES = 1_000_000, 20_000, 64 * 1024 * 1024
_SHOWN_CHARS = 140


def listed(repository: Repository) -> Iterator[str]:
    """The tags of a repository, each once, in the registry's order; a page is asked for when those before it are taken.

    Raises:
        RegistryNotFound: there is no such repository.
        InvalidInput: what the registry sends is no list of tags.
        Unsupported: a list without end, that repeats itself, or that leads away from the registry.
        DistError: what the registry says.
    """
    at = f"tags of {repository.locator}"
    trail = Trail(repository, at, accept="application/json", max_pages=MAX_PAGES)
    seen: set[str] = set()
    taken = 0
    url = repository.at(_page_after(None))
    while True:
        response = trail.ask(url)
        raw = document.answered(response, at, limit=MAX_BYTES)
        taken += len(raw)
        page = read(raw, at)
        new = [tag for tag in dict.fromkeys(page) if tag not in seen]
        seen.update(new)
        if len(seen) > MAX_TAGS or taken > MAX_BYTES:
            raise Unsupported(f"{at}: expected at most {MAX_TAGS} in {MAX_BYTES} bytes, there are more")
        yield from new
        following = next_page(response, at)
        if following is None and new and len(page) == PAGE_TAGS:
            following = repository.at(_page_after(page[-1]))  # not every registry names the next page, and this one was full
        if following is None:
            return
        if page and not new:
            raise Unsupported(f"{at}: a page has nothing but what came before it, and is said not to be the last")
        url = following


def _page_after(last: str | None) -> str:
    return f"tags/list?{urlencode({'n': PAGE_TAGS} | ({} if last is None else {'last': last}))}"


def read(raw: bytes, at: str) -> tuple[str, ...]:
    """The tags in an answer, called `at` in errors; null, which some registries send for none, is none.

    Raises:
        InvalidInput: it is no list of tags.
    """
    found = fields.parse_object(raw, at=at)
    if "tags" not in found:
        raise InvalidInput(f"{at}: expected a list under the key tags, there is none")
    tags = fields.strings(found, "tags", at=at)
    for tag in tags:
        if not is_tag(tag):  # which may be meant for a terminal, or a path
            raise InvalidInput(f"{at}: bad tag {tag[:_SHOWN_CHARS]!a}, expected 1 to 128 letters, digits and . _ -")
    return tags
