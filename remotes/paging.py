"""Listings in pages, each of which names the next one in a Link header (distribution-spec 1.1; RFC 8288)."""

import httpx

from prefect_dist.ocispec.errors import Unsupported
from prefect_dist.remotes.repository import Repository


class Trail:
    """Asks for the pages of one listing: at its registry alone, none twice, and not without end.

    `subject` is what errors call the listing; of more than `max_pages` pages something is wrong.
    """

    def __init__(self, repository: Repository, subject: str, *, accept: str, max_pages: int) -> None:
        self._repository, self._subject, self._accept, self._max_pages = repository, subject, accept, max_pages
        self._asked: set[httpx.URL] = set()

    def ask(self, url: httpx.URL) -> httpx.Response:
        """Ask for the first page, or one that the page before it named. The answer is open.

        Raises:
            Unsupported: a URL that leads away from the registry or was asked already, or one page too many.
            DistError: as `Repository.ask`.
        """
        if not self._repository.owns(url):
            raise Unsupported(f"{self._subject}: the next page is not at this registry")
        if url in self._asked:
            raise Unsupported(f"{self._subject}: the pages go round in a circle")
        if len(self._asked) == self._max_pages:
            raise Unsupported(f"{self._subject}: expected at most {self._max_pages} pages, there are more")
        self._asked.add(url)
        return self._repository.ask("GET", url, subject=self._subject, headers={"Accept": self._accept})
