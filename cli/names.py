"""The command names, and how a name is found that a person typed."""

from collections.abc import Iterator, Sequence
from typing import Any

from prefect_dist.cli import inputs, tables
from prefect_dist.cli.context import Context
from prefect_dist.cli.errors import BadInput, tell
from prefect_dist.ocispec.errors import DistError, InvalidInput, NotFound
from prefect_dist.storage import ContentStore, Name


def names(context: Context, wanted: Sequence[str], *, check: bool, quiet: bool) -> int:
    """List names, in their order, or with `check` what is there of them; 1 if one is not known, damaged or not complete."""
    store = inputs.store(context)
    chosen, errors = _chosen(store, wanted)
    if check:
        store.require()
        from prefect_dist.cli.checking import check_names

        code = check_names(context, store, chosen, quiet=quiet)
    else:
        _show(context, chosen, quiet=quiet)
        code = 0
    for error in errors:
        tell(error)
    return 1 if errors else code


def find_record(store: ContentStore, text: str) -> Name:
    """The name that a person means by `text`: recorded like that, or as Docker expands it.

    Raises:
        NotFound: neither is there.
        InvalidInput: its record is damaged.
    """
    return store.names.get(find_name(store, text))


def find_name(store: ContentStore, text: str) -> str:
    """The name that a person means by `text`, as it was recorded, be its record damaged.

    Raises:
        NotFound: there is none.
    """
    for name in _meanings(text):
        if name in store.names:
            return name
    raise NotFound(f"name {' or '.join(dict.fromkeys(_meanings(text)))}: not there; dist names lists all")


def _meanings(text: str) -> Iterator[str]:
    yield text
    try:
        yield str(inputs.reference(text))
    except BadInput:
        return


def _chosen(store: ContentStore, wanted: Sequence[str]) -> tuple[list[Name], Sequence[DistError]]:
    """The names that are asked for, sorted, and what is wrong with the others."""
    if not wanted:
        return store.names.read()
    found, errors = dict[str, Name](), list[DistError]()
    for text in wanted:
        try:
            name = find_record(store, text)
        except (NotFound, InvalidInput) as exc:
            errors.append(exc)
        else:
            found[name.name] = name
    return [found[name] for name in sorted(found)], errors


def _show(context: Context, chosen: Sequence[Name], *, quiet: bool) -> None:
    if context.output == "json":
        tables.json([_name_json(name) for name in chosen])
    elif quiet:
        tables.lines([n.name for n in chosen])
    else:
        rows = [(n.name, str(n.descriptor.digest), n.descriptor.kind, _platforms(n), tables.age(n.recorded)) for n in chosen]
        tables.columns(("NAME", "DIGEST", "KIND", "PLATFORMS", "AGE"), rows)


def _name_json(name: Name) -> dict[str, Any]:
    return {
        "name": name.name,
        "descriptor": name.descriptor.to_json(),
        "source": name.source,
        "platforms": None if name.platforms is None else list(map(str, name.platforms)),
        "referrers": [referrer.to_json() for referrer in name.referrers],
        "recorded": name.recorded,
    }


def _platforms(name: Name) -> str:
    """Which were wanted: `all`, or those of a fetch with --platform."""
    return "all" if name.platforms is None else ",".join(map(str, name.platforms))
