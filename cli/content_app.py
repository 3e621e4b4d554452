"""The grammar of the commands on the content store. All work by hand, and each imports what it does when it runs."""

from typing import Annotated

from cyclopts import App, Parameter, validators

from prefect_dist.cli.options import HAND, Platform, Shared

app = App(group_commands=HAND)

_Digest = Annotated[str, Parameter(name="DIGEST", help="A whole digest, as dist ls shows it.")]


def _refuse_options(_: object, value: str | list[str]) -> None:
    """Of what begins with a hyphen let only that pass which stands for standard input or output."""
    for text in [value] if isinstance(value, str) else value:
        if text.startswith("-") and text != "-":
            raise ValueError(f"unknown option {text}")


def _file(name: str, text: str) -> Parameter:
    return Parameter(name=name, allow_leading_hyphen=True, validator=_refuse_options, help=text)


def _quiet(what: str) -> Parameter:
    return Parameter(name=["--quiet", "-q"], negative=(), help=f"{what} only.")


@app.command(name=["ls", "list"], usage="Usage: dist ls [OPTIONS] [PREFIX...]")
def ls(
    prefixes: Annotated[
        list[str] | None, Parameter(name="PREFIX", help="List what begins with any of these: sha256:0123… or 0123… alone.")
    ] = None,
    /,
    *,
    quiet: Annotated[bool, _quiet("Digests")] = False,
    context: Shared,
) -> int:
    """List the blobs in the content store."""
    from prefect_dist.cli.content import ls

    return ls(context, prefixes or [], quiet=quiet)


@app.command
def get(digest: _Digest, /, *, context: Shared) -> int:
    """Write a blob from the content store to standard output, verified."""
    from prefect_dist.cli.content import get

    return get(context, digest)


@app.command
def active(*, quiet: Annotated[bool, _quiet("Keys")] = False, context: Shared) -> int:
    """List the ingests that are under way or were interrupted."""
    from prefect_dist.cli.content import active

    return active(context, quiet=quiet)


@app.command
def ingest(
    key: Annotated[str, Parameter(name="KEY", help="What the ingest is called until it is done.")],
    /,
    *,
    expected_size: Annotated[int | None, Parameter(validator=validators.Number(gte=0), help="Bytes that have to come.")] = None,
    expected_digest: Annotated[str | None, Parameter(help="The digest that they have to have.")] = None,
    resume: Annotated[
        bool | None, Parameter(help="Go on with what an interrupted ingest left, or drop that. Default: refuse to choose.")
    ] = None,
    context: Shared,
) -> int:
    """Put standard input into the content store and print its digest.

    With --resume too, standard input is the whole content: what is there already is read over, and compared by its digest.
    """
    from prefect_dist.cli.ingest import ingest

    return ingest(context, key, expected_size=expected_size, expected_digest=expected_digest, resume=resume)


@app.command(usage="Usage: dist delete [OPTIONS] DIGEST...")
def delete(
    digests: Annotated[list[str], Parameter(name="DIGEST", help="Whole digests, as dist ls shows them.")],
    /,
    *,
    force: Annotated[bool, Parameter(negative=(), help="Delete also what names need.")] = False,
    context: Shared,
) -> int:
    """Delete blobs that no name needs."""
    from prefect_dist.cli.deletion import delete

    return delete(context, digests, force=force)


@app.command
def edit(
    digest: _Digest,
    /,
    *,
    editor: Annotated[str | None, Parameter(help="A command, with its arguments. Default: $VISUAL or $EDITOR.")] = None,
    validate: Annotated[bool, Parameter(negative=(), help="Refuse a result that is no manifest.")] = False,
    context: Shared,
) -> int:
    """Edit a copy of a blob, put it into the content store as a new one and print its digest."""
    from prefect_dist.cli.edit import edit

    return edit(context, digest, editor=editor, validate=validate)


@app.command(usage="Usage: dist names [OPTIONS] [NAME...]")
def names(
    wanted: Annotated[list[str] | None, Parameter(name="NAME", help="List these. Default: all.")] = None,
    /,
    *,
    check: Annotated[bool, Parameter(negative=(), help="See whether all content is there, and fail where not.")] = False,
    quiet: Annotated[bool, _quiet("Names")] = False,
    context: Shared,
) -> int:
    """List the names in the content store and what they stand for."""
    from prefect_dist.cli.names import names

    return names(context, wanted or [], check=check, quiet=quiet)


@app.command(name=["rm", "rmi"], usage="Usage: dist rm NAME...")
def rm(
    wanted: Annotated[list[str], Parameter(name="NAME", help="Names, as dist names shows them, or shorter.")],
    /,
    *,
    context: Shared,
) -> int:
    """Forget names; their content stays until it is collected."""
    from prefect_dist.cli.deletion import rm

    return rm(context, wanted)


@app.command(usage="Usage: dist export NAME... FILE")
def export(
    names_and_file: Annotated[list[str], _file("NAME FILE", "Names, and last the archive to write; - is standard output.")],
    /,
    *,
    context: Shared,
) -> int:
    """Write images to a tar archive that skopeo, docker load and others read."""
    from prefect_dist.cli.archive import export

    return export(context, names_and_file)


@app.command(name="import")
def import_(
    file: Annotated[str, _file("FILE", "A tar archive, plain or compressed; - is standard input.")],
    /,
    *,
    name: Annotated[str | None, Parameter(help="What to call an image to which the archive gives no whole name.")] = None,
    context: Shared,
) -> int:
    """Bring the images of an archive into the content store: an OCI layout, or what docker save writes."""
    from prefect_dist.cli.archive import import_

    return import_(context, file, name=name)


@app.command
def unpack(
    name: Annotated[str, Parameter(name="NAME", help="A name in the content store.")],
    directory: Annotated[str, Parameter(name="DIR", help="A directory that is empty or not there.")],
    /,
    *,
    platform: Platform = None,
    context: Shared,
) -> int:
    """Unpack an image from the content store, verified, and show its chain ID."""
    from prefect_dist.cli.fetch import unpack

    return unpack(context, name, directory, platform)
