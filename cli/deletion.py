"""The commands delete and rm remove blobs and names from a store."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from prefect_dist.cli import inputs, output
from prefect_dist.cli.names import find_name
from prefect_dist.cli.options import Context, Shared, option
from prefect_dist.cli.output import print_error
from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.ocispec.errors import DistError, InvalidInput

if TYPE_CHECKING:
    from prefect_dist.storage import ContentStore


def delete(
    digests: Annotated[list[str], Parameter(name="DIGEST", help="Complete digests, as dist ls shows them.")],
    /,
    *,
    force: Annotated[bool, option("Delete also blobs that names need.")] = False,
    context: Shared,
) -> int:
    """Delete blobs. Without `force`, keep blobs of names and active runs."""
    wanted = {inputs.parse_digest(text) for text in digests}
    store = inputs.open_store(context)
    with store.begin_sweep() as sweep:  # no run can begin to rely on the blobs
        needed = {} if force else _find_needed(store, wanted)

        def delete_one(text: str) -> None:
            digest = Digest.parse(text)
            if digest in needed:
                raise InvalidInput(f"blob {digest}: {needed[digest]}; --force deletes the blob anyway")
            sweep.require()
            store.delete(digest)

        return _delete_each(context, digests, delete_one, key="digest")


def rm(
    wanted: Annotated[list[str], Parameter(name="NAME", help="Names, as dist names shows them, or short, such as redis.")],
    /,
    *,
    context: Shared,
) -> int:
    """Remove names."""
    store, removed = inputs.open_store(context), list[str]()

    def remove(text: str) -> None:
        name = find_name(store, text)
        store.names.delete(name)
        removed.append(name)

    code = _delete_each(context, wanted, remove, key="name")
    if removed:
        store.update_index()
    return code


def _find_needed(store: "ContentStore", wanted: Iterable[Digest]) -> Mapping[Digest, str]:
    """Return the reason for each blob that must stay: the first name or run that needs the blob, or may need it."""
    from prefect_dist.storage.presence import reachable_digests

    reasons: dict[Digest, str] = {}
    for holder, root in _roots(store):
        free = set(wanted) - reasons.keys()
        if not free:
            break
        try:
            found = dict.fromkeys(free & reachable_digests(store, [root]), f"{holder} needs it")
        except DistError as exc:
            found = dict.fromkeys(free, f"{holder} may need it, its content cannot be read ({exc})")
        reasons |= found
    return reasons


def _roots(store: "ContentStore") -> Iterator[tuple[str, Descriptor]]:
    """Yield each name and active run with the root of the needed content.

    Leases are read first: a run records its names before it releases its leases.
    """
    leased = list(store.leases.roots())
    for name in store.names:
        yield from ((name.name, root) for root in name.roots)
    for root in leased:
        yield f"an active run that fetches {root}", root


def _delete_each(context: Context, wanted: Iterable[str], delete: Callable[[str], None], *, key: str) -> int:
    """Delete objects, print the deleted objects and the failures, and return the exit code. `key` names an object in JSON."""
    errors = {text: _try(delete, text) for text in dict.fromkeys(wanted)}
    deleted = [text for text, error in errors.items() if error is None]
    if context.output == "json":
        output.print_json([_outcome_json(key, text, error) for text, error in errors.items()])
    else:
        output.print_lines(deleted)
    for error in filter(None, errors.values()):
        print_error(error)
    return 0 if len(deleted) == len(errors) else 1


def _try(delete: Callable[[str], None], text: str) -> DistError | None:
    try:
        delete(text)
    except DistError as exc:
        return exc
    return None


def _outcome_json(key: str, text: str, error: DistError | None) -> dict[str, str | None]:
    if error is None:
        return {key: text, "status": "deleted", "error": None}
    return {key: text, "status": "failed", "error": str(error)}
