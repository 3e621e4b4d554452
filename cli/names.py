"""The command names, with and without `--check`, and the look-up of names."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from prefect_dist.cli import inputs, output
from prefect_dist.cli.inputs import BadInput
from prefect_dist.cli.options import Context, Shared, option
from prefect_dist.cli.output import print_error
from prefect_dist.ocispec import Descriptor
from prefect_dist.ocispec.errors import DistError, InvalidInput, NotFound
from prefect_dist.ocispec.units import size

if TYPE_CHECKING:
    from prefect_dist.storage import ContentStore, Name
    from prefect_dist.storage.presence import Presence


def names(
    wanted: Annotated[list[str] | None, Parameter(name="NAME", help="The names to list. Default: all.")] = None,
    /,
    *,
    check: Annotated[bool, option("Check that the store has all content of each name. Exit with 1 if it has not.")] = False,
    quiet: Annotated[bool, option("Print only the names.", name=["--quiet", "-q"])] = False,
    context: Shared,
) -> int:
    """Print names, sorted. Return 1 if a name is unknown, damaged, or incomplete with `check`."""
    store = inputs.open_store(context)
    chosen, errors = _read_names(store, wanted or ())
    if check:
        store.require()
        code = _check(context, store, chosen, quiet=quiet)
    else:
        _show(context, chosen, quiet=quiet)
        code = 0
    for error in errors:
        print_error(error)
    return 1 if errors else code


def find_record(store: "ContentStore", text: str) -> "Name":
    """Return the record of the name `text`, or of the expanded short name.

    Raises:
        NotFound: the store has neither name.
        InvalidInput: the record is damaged.
    """
    return store.names.get(find_name(store, text))


def find_name(store: "ContentStore", text: str) -> str:
    """Return the recorded name for `text`, also if the record is damaged.

    Raises:
        NotFound: the store has neither name.
    """
    for name in _meanings(text):
        if name in store.names:
            return name
    raise NotFound(f"name {' or '.join(dict.fromkeys(_meanings(text)))}: not in the store; dist names lists all names")


def _meanings(text: str) -> Iterator[str]:
    yield text
    try:
        yield inputs.parse_reference(text).name
    except BadInput:
        return


def _read_names(store: "ContentStore", wanted: Sequence[str]) -> tuple[list["Name"], Sequence[DistError]]:
    """Return the wanted names, sorted, and the errors of unreadable names."""
    if not wanted:
        return store.names.read()
    found, errors = dict[str, "Name"](), list[DistError]()
    for text in wanted:
        try:
            name = find_record(store, text)
        except (NotFound, InvalidInput) as exc:
            errors.append(exc)
        else:
            found[name.name] = name
    return [found[name] for name in sorted(found)], errors


def _show(context: Context, chosen: Sequence["Name"], *, quiet: bool) -> None:
    if context.output == "json":
        output.print_json([_name_json(name) for name in chosen])
    elif quiet:
        output.print_lines([n.name for n in chosen])
    else:
        rows = [
            (n.name, str(n.descriptor.digest), n.descriptor.kind, _platforms(n), output.format_age(n.recorded)) for n in chosen
        ]
        output.print_columns(("NAME", "DIGEST", "KIND", "PLATFORMS", "AGE"), rows)


def _name_json(name: "Name") -> dict[str, Any]:
    return {
        "name": name.name,
        "descriptor": name.descriptor.to_json(),
        "source": name.source,
        "platforms": None if name.platforms is None else list(map(str, name.platforms)),
        "referrers": [referrer.to_json() for referrer in name.referrers],
        "recorded": name.recorded,
    }


def _platforms(name: "Name") -> str:
    """Return the fetched platforms, or `all`."""
    return "all" if name.platforms is None else ",".join(map(str, name.platforms))


@dataclass(frozen=True, slots=True, kw_only=True)
class _CheckedName:
    """The content of a name in the store. `found` is None if it could not be read. `error` is None if it is complete."""

    name: "Name"
    found: "Presence | None"
    error: str | None

    @property
    def status(self) -> Literal["complete", "incomplete", "unavailable"]:
        if self.found is not None and not self.found.present:
            return "unavailable"
        return "complete" if self.error is None else "incomplete"


def _check(context: Context, store: "ContentStore", names: Iterable["Name"], *, quiet: bool) -> int:
    """Print the state of each name, or with `quiet` the complete names. Return 1 if a name is not complete."""
    findings = [_check_name(store, name) for name in names]
    if context.output == "json":
        output.print_json([_finding_json(finding) for finding in findings])
    elif quiet:
        output.print_lines([finding.name.name for finding in findings if finding.error is None])
    else:
        rows = [(f.name.name, str(f.name.descriptor.digest), _status(f), _size(f)) for f in findings]
        output.print_columns(("NAME", "DIGEST", "STATUS", "SIZE"), rows)
    errors = [finding.error for finding in findings if finding.error is not None]
    for error in errors:
        print_error(error)
    return 1 if errors else 0


def _check_name(store: "ContentStore", name: "Name") -> _CheckedName:
    from prefect_dist.storage.presence import check_name

    try:
        found = check_name(store, name)
    except DistError as exc:
        return _CheckedName(name=name, found=None, error=f"{name.name}: {exc}")
    return _CheckedName(name=name, found=found, error=None if found.is_complete else f"{name.name}: {found.shortage}")


def _status(finding: _CheckedName) -> str:
    if finding.found is None:
        return f"{finding.status} (?)"
    if finding.status == "unavailable":
        return finding.status
    present, missing = len(finding.found.present), len(finding.found.missing)
    return f"{finding.status} ({present}/{present + missing})"


def _size(finding: _CheckedName) -> str:
    if finding.found is None or finding.status == "unavailable":
        return "-"
    present, missing = _sum_sizes(finding.found.present), _sum_sizes(finding.found.missing)
    return f"{size(present)} / {size(present + missing)}" if missing else size(present)


def _finding_json(finding: _CheckedName) -> dict[str, Any]:
    found = finding.found
    return {
        "name": finding.name.name,
        "digest": str(finding.name.descriptor.digest),
        "status": finding.status,
        "present": None if found is None else len(found.present),
        "present_bytes": None if found is None else _sum_sizes(found.present),
        "missing": None if found is None else [descriptor.to_json() for descriptor in found.missing],
        "error": finding.error,
    }


def _sum_sizes(descriptors: Sequence[Descriptor]) -> int:
    return sum(descriptor.size for descriptor in descriptors)
