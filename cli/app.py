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
    concurrency: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=64), help="Descriptors at once.")] = 8,
    retries: Annotated[
        int, Parameter(validator=validators.Number(gte=0), help="Attempts after the first, per descriptor.")
    ] = 3,
    read_timeout: Annotated[float, Parameter(validator=_POSITIVE, help="Seconds to wait for any next byte.")] = 60,
    plain_http: PlainHttp = False,
    context: Shared,
) -> int:
    """Bring images into the content store, each descriptor by a Prefect task, and record their names."""
    from cli.fetch import run

    return run(
        context,
        references,
        platform or [],
        concurrency=concurrency,
        retries=retries,
        read_timeout=read_timeout,
        plain_http=plain_http,
    )


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
