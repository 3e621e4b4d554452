"""The commands that take things out of the content store: delete, rm."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prefect_dist.cli import inputs, tables
from prefect_dist.cli.context import Context
from prefect_dist.cli.errors import tell
from prefect_dist.cli.names import find_name
from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.ocispec.errors import DistError, InvalidInput
from prefect_dist.storage import ContentStore
from prefect_dist.storage.presence import reachable_digests


def delete(context: Context, digests: Sequence[str], *, force: bool) -> int:
    """Delete blobs; without `force` none that a name needs."""
    wanted = {inputs.digest(text) for text in digests}
    store = inputs.store(context)
    with store.begin_sweep() as sweep:  # no run may come to rely on them meanwhile
        needed = {} if force else _find_needed(store, wanted)

        def delete_one(text: str) -> None:
            digest = Digest.parse(text)
            if digest in needed:
                raise InvalidInput(f"blob {digest}: {needed[digest]}; delete it all the same with --force")
            sweep.require()
            store.delete(digest)

        return _delete_each(context, digests, delete_one, called="digest")


def rm(context: Context, wanted: Sequence[str]) -> int:
    """Forget names."""
    store, forgotten = inputs.store(context), list[str]()

    def forget(text: str) -> None:
        name = find_name(store, text)
        store.names.delete(name)
        forgotten.append(name)

    code = _delete_each(context, wanted, forget, called="name")
    if forgotten:
        store.update_index()
    return code


def _find_needed(store: ContentStore, wanted: Iterable[Digest]) -> Mapping[Digest, str]:
    """Why blobs are not to be deleted: the first name or run that needs them, or that nobody knows what a name needs."""
    reasons: dict[Digest, str] = {}
    for holder, root in _roots(store):
        free = set(wanted) - reasons.keys()
        if not free:
            break
        try:
            found = dict.fromkeys(free & reachable_digests(store, [root]), f"{holder} needs it")
        except DistError as exc:
            found = dict.fromkeys(free, f"whether {holder} needs it cannot be told ({exc})")
        reasons |= found
    return reasons


def _roots(store: ContentStore) -> Iterator[tuple[str, Descriptor]]:
    """Return each name or run that needs content, with the root of that content.

    Leases are read first: a run records its names before it releases its leases.
    """
    leased = list(store.leases.roots())
    for name in store.names:
        yield from ((name.name, root) for root in name.roots)
    for root in leased:
        yield f"a run that is bringing in {root}", root


def _delete_each(context: Context, wanted: Iterable[str], delete: Callable[[str], None], *, called: str) -> int:
    """Delete objects, print the deleted ones, and report each failure. Return the exit code. `called` is the key in JSON."""
    errors = {thing: _try(delete, thing) for thing in dict.fromkeys(wanted)}
    gone = [thing for thing, error in errors.items() if error is None]
    if context.output == "json":
        tables.json([_outcome(called, thing, error) for thing, error in errors.items()])
    else:
        tables.lines(gone)
    for error in filter(None, errors.values()):
        tell(error)
    return 0 if len(gone) == len(errors) else 1


def _try(act: Callable[[str], None], thing: str) -> DistError | None:
    try:
        act(thing)
    except DistError as exc:
        return exc
    return None


def _outcome(called: str, thing: str, error: DistError | None) -> dict[str, str | None]:
    if error is None:
        return {called: thing, "status": "deleted", "error": None}
    return {called: thing, "status": "failed", "error": str(error)}
