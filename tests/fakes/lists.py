"""Lists in pages, of the fake registry: tags (distribution spec 1.1, "Listing Tags"), repositories (Docker's "Catalog")."""

from collections.abc import Iterable
from urllib.parse import parse_qs, urlencode

from tests.fakes.faults import Headers, Response


def page(path: str, query: str, key: str, names: Iterable[str], *, most: int, about: dict[str, str] | None = None) -> Response:
    """Answer with the names after the query's `last`: its `n`, at most `most`, and a Link if more names follow."""
    fields = parse_qs(query)
    number = fields.get("n", [str(most)])[0]
    if not number.isdecimal():
        return Response.refusal(400, "PAGINATION_NUMBER_INVALID", f"cannot read the number {number}")
    left = [name for name in sorted(names) if name > fields.get("last", [""])[0]]
    shown = left[: min(int(number), most)]
    link = next_page(path, query, shown[-1]) if shown and len(shown) < len(left) else ()
    return Response.of_json(200, {**(about or {}), key: shown}, link)


def next_page(path: str, query: str, last: str) -> Headers:
    """Return the header with the URL of the page after `last`."""
    fields = {name: values[0] for name, values in parse_qs(query).items()}
    return (("Link", f'<{path}?{urlencode({**fields, "last": last})}>; rel="next"'),)
