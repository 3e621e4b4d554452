"""The command names, and how a name is found that a person typed."""

from collections.abc import Iterator, Sequence
from typing import Any

from cli import inputs, tables
from cli.context import Context
from cli.errors import BadInput, tell
from ocispec.errors import NotFound
from storage import ContentStore, Name


def names(context: Context, wanted: Sequence[str], *, check: bool, quiet: bool) -> int:
    """List names, in their order, or with `check` what is there of them; 1 if one is not known or not complete."""
    store = inputs.store(context)
    chosen, unknown = _chosen(store, wanted)
    if check:
        store.require()
        from cli.checking import check_names

        code = check_names(context, store, chosen, quiet=quiet)
    else:
        _show(context, chosen, quiet=quiet)
        code = 0
    for error in unknown:
        tell(error)
    return 1 if unknown else code


def recorded(store: ContentStore, text: str) -> Name:
    """The name that a person means by `text`: recorded like that, or as Docker expands it.

    Raises:
        NotFound: neither is there.
    """
    for name in _meanings(text):
        try:
            return store.names.get(name)
        except NotFound:
            continue
    raise NotFound(f"name {' or '.join(dict.fromkeys(_meanings(text)))}: not there; dist names lists all")


def _meanings(text: str) -> Iterator[str]:
    yield text
    try:
        yield str(inputs.reference(text))
    except BadInput:
        return


def _chosen(store: ContentStore, wanted: Sequence[str]) -> tuple[list[Name], list[NotFound]]:
    if not wanted:
        return list(store.names), []
    found, unknown = dict[str, Name](), list[NotFound]()
    for text in wanted:
        try:
            name = recorded(store, text)
        except NotFound as exc:
            unknown.append(exc)
        else:
            found[name.name] = name
    return [found[name] for name in sorted(found)], unknown


def _show(context: Context, known: Sequence[Name], *, quiet: bool) -> None:
    if context.output == "json":
        tables.json([_described(name) for name in known])
    elif quiet:
        tables.lines([n.name for n in known])
    else:
        rows = [(n.name, str(n.descriptor.digest), n.descriptor.kind, _platforms(n), tables.age(n.recorded)) for n in known]
        tables.columns(("NAME", "DIGEST", "KIND", "PLATFORMS", "AGE"), rows)


def _described(name: Name) -> dict[str, Any]:
    return {
        "name": name.name,
        "descriptor": name.descriptor.to_json(),
        "source": name.source,
        "platforms": None if name.platforms is None else list(map(str, name.platforms)),
        "recorded": name.recorded,
    }


def _platforms(name: Name) -> str:
    """Which were wanted: `all`, or those of a fetch with --platform."""
    return "all" if name.platforms is None else ",".join(map(str, name.platforms))
