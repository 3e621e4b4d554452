"""The grammar of the command line: every command, its options and its help, and nothing else.

What a command does is in a module of its own, which is imported when the command runs: help and the commands that need
neither network nor Prefect have to answer at once, and `import prefect` alone takes a second.
"""

from typing import Annotated

from cyclopts import App, Group, Parameter, validators

from cli.context import Context, Output, default_store

HELP = """Fetch, verify and store OCI and Docker images: by hand, or as Prefect runs with one task per content descriptor.

Images are named as with Docker: redis is docker.io/library/redis:latest.
"""

_RUNS = Group("As Prefect runs", sort_key=1)
_HAND = Group("By hand, without Prefect", sort_key=2)
_COMMON = Group("For all commands", sort_key=3)
_POSITIVE = validators.Number(gt=0)


def _version() -> str:
    from importlib import metadata

    return metadata.version("prefect-dist")


app = App(
    name="dist",
    help=HELP,
    version=_version,
    version_flags=["--version"],
    group_commands=_HAND,
    suppress_keyboard_interrupt=False,
    help_format="plaintext",  # a parser of Markdown takes longer to load than the rest of the help
)
app.meta.group_parameters = _COMMON
app.meta.suppress_keyboard_interrupt = False  # `cli.main` says what an interrupt leaves

Shared = Annotated[Context, Parameter(parse=False)]
Flag = Parameter(negative=())
Concurrency = Annotated[int, Parameter(validator=validators.Number(gte=1, lte=64), help="How many things at once.")]
Retries = Annotated[int, Parameter(validator=validators.Number(gte=0), help="Attempts after the first, per descriptor.")]
ReadTimeout = Annotated[float, Parameter(validator=_POSITIVE, help="Seconds to wait for any next byte.")]
PlainHttp = Annotated[bool, Parameter(negative=(), help="Speak http to registries that are not on this machine.")]


@app.command(group=_RUNS, usage="Usage: dist fetch [OPTIONS] REF...")
def fetch(
    references: Annotated[list[str], Parameter(name="REF", help="Images, such as redis:7 or ghcr.io/a/b@sha256:…")],
    /,
    *,
    platform: Annotated[
        list[str] | None,
        Parameter(negative=(), help="Of an index fetch only what serves this, such as linux/arm64; repeatable. Default: all."),
    ] = None,
    concurrency: Concurrency = 8,
    retries: Retries = 3,
    read_timeout: ReadTimeout = 60,
    plain_http: PlainHttp = False,
    context: Shared,
) -> int:
    """Bring images into the content store, each descriptor by a Prefect task, and record their names."""
    from cli.fetch import fetch

    return fetch(
        context,
        references,
        platform or [],
        concurrency=concurrency,
        retries=retries,
        read_timeout=read_timeout,
        plain_http=plain_http,
    )


@app.command(group=_RUNS)
def pull(
    reference: Annotated[str, Parameter(name="REF", help="An image, such as redis:7.")],
    directory: Annotated[str, Parameter(name="DIR", help="A directory that is empty or not there.")],
    /,
    *,
    platform: Annotated[str | None, Parameter(help="Which of an index's images. Default: this machine's.")] = None,
    concurrency: Concurrency = 8,
    retries: Retries = 3,
    read_timeout: ReadTimeout = 60,
    plain_http: PlainHttp = False,
    context: Shared,
) -> int:
    """Fetch one platform of an image, then unpack its layers: its root file system appears in DIR, whole and verified."""
    from cli.fetch import pull

    return pull(
        context,
        reference,
        directory,
        platform,
        concurrency=concurrency,
        retries=retries,
        read_timeout=read_timeout,
        plain_http=plain_http,
    )


@app.command(group=_RUNS)
def gc(
    *,
    grace: Annotated[str, Parameter(help="Remove only what nobody has touched for so long, such as 24h or 7d.")] = "24h",
    dry_run: Annotated[bool, Parameter(negative=(), help="Only tell what would be removed.")] = False,
    context: Shared,
) -> int:
    """Remove blobs that no name and no run under way needs, and what dead runs left behind."""
    from cli.upkeep import gc

    return gc(context, grace=grace, dry_run=dry_run)


@app.command(group=_RUNS)
def verify(
    *,
    repair: Annotated[
        list[str] | None,
        Parameter(name="--repair", negative=(), consume_multiple=True, help="Names to fetch again if not whole; all for all."),
    ] = None,
    concurrency: Concurrency = 4,
    plain_http: PlainHttp = False,
    context: Shared,
) -> int:
    """Hash every blob anew, put corrupt ones into quarantine, and see that every name is whole."""
    from cli.upkeep import verify

    return verify(context, repair=repair or [], concurrency=concurrency, plain_http=plain_http)


@app.command
def unpack(
    name: Annotated[str, Parameter(name="NAME", help="A name in the content store.")],
    directory: Annotated[str, Parameter(name="DIR", help="A directory that is empty or not there.")],
    /,
    *,
    platform: Annotated[str | None, Parameter(help="Which of an index's images. Default: this machine's.")] = None,
    context: Shared,
) -> int:
    """Unpack an image from the content store, verified, and show its chain ID."""
    from cli.fetch import unpack

    return unpack(context, name, directory, platform)


@app.command
def resolve(
    reference: Annotated[str, Parameter(name="REF", help="An image, such as redis:7.")],
    /,
    *,
    plain_http: PlainHttp = False,
    context: Shared,
) -> int:
    """Show what a reference stands for now: its digest, media type and size."""
    from cli.remote import resolve

    return resolve(context, reference, plain_http=plain_http)


@app.command(usage="Usage: dist fetch-object [OPTIONS] REF [OBJECT] [HINT...]")
def fetch_object(
    locator: Annotated[str, Parameter(name="REF", help="An image, or its locator where OBJECT follows.")],
    object_and_hints: Annotated[
        list[str] | None,
        Parameter(name="OBJECT HINT", help="A tag or digest; hints are mediatype:… and size:…, and help to find it."),
    ] = None,
    /,
    *,
    plain_http: PlainHttp = False,
    context: Shared,
) -> int:
    """Write one object to standard output, verified: a manifest, an index, a config or a layer.

    Given as REF, or as locator, object and hints apart: docker.io/library/redis sha256:…
    """
    from cli.remote import fetch_object

    return fetch_object(context, locator, object_and_hints or [], plain_http=plain_http)


@app.command
def ls(
    *, quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=(), help="Digests only.")] = False, context: Shared
) -> int:
    """List the blobs in the content store."""
    from cli.content import ls

    return ls(context, quiet=quiet)


@app.command
def get(
    digest: Annotated[str, Parameter(name="DIGEST", help="A whole digest, as dist ls shows it.")], /, *, context: Shared
) -> int:
    """Write a blob from the content store to standard output, verified."""
    from cli.content import get

    return get(context, digest)


@app.command
def names(
    *, quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=(), help="Names only.")] = False, context: Shared
) -> int:
    """List the names in the content store and what they stand for."""
    from cli.content import names

    return names(context, quiet=quiet)


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    store: Annotated[
        str | None, Parameter(help="Content store: a path or fsspec URL. Default: $DIST_STORE, or user data.")
    ] = None,
    timeout: Annotated[float | None, Parameter(validator=_POSITIVE, help="Seconds for the whole command.")] = None,
    connect_timeout: Annotated[float, Parameter(validator=_POSITIVE, help="Seconds for one connection.")] = 30,
    output: Annotated[Output, Parameter(help="What is written to standard output.")] = "text",
    debug: Annotated[bool, Parameter(negative=(), help="Logs and tracebacks on standard error.")] = False,
) -> int:
    """Take the common options and hand the rest to a command; its exit code."""
    from cli.ending import endable

    command, bound, shared = app.parse_args(tokens, exit_on_error=False, print_error=False)
    context = Context(
        store=default_store() if store is None else store,
        timeout_s=timeout,
        connect_timeout_s=connect_timeout,
        output=output,
        debug=debug,
    )
    extra = dict.fromkeys(shared, context)
    return endable(lambda: command(*bound.args, **bound.kwargs, **extra), timeout_s=timeout)
