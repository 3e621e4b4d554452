"""The grammar of the command line: commands, their options and their help, and nothing else.

What a command does is in a module of its own, which is imported when the command runs: help and the commands that need
neither network nor Prefect have to answer at once, and `import prefect` alone takes a second. Runs are in
`cli.run_app`, the commands on the content store in `cli.content_app`.
"""

from typing import Annotated, Any

from cyclopts import App, Parameter

from prefect_dist.cli import content_app, run_app
from prefect_dist.cli.context import Context, Output, choose_store
from prefect_dist.cli.options import COMMON, HAND, POSITIVE, From, LoginOptions, NetworkOptions, Shared, To

HELP = """Fetch, verify and store OCI and Docker images: by hand, or as Prefect runs with one task per content descriptor.

Images are named as with Docker: redis is docker.io/library/redis:latest.
"""


def explain_unknown(command: str) -> str:
    """What to say of a command that there is not."""
    import difflib

    known = [name for part in (app, run_app.app, content_app.app) for name in part if not name.startswith("-")]
    near = difflib.get_close_matches(command, known, n=1)
    return f"unknown command {command!r}{f', did you mean {near[0]}?' if near else ''} (see dist --help)"


def _version() -> str:
    from importlib import metadata

    return metadata.version("prefect-dist")


app = App(
    name="dist",
    help=HELP,
    version=_version,
    version_flags=["--version"],
    group_commands=HAND,
    suppress_keyboard_interrupt=False,
    help_format="plaintext",  # a parser of Markdown takes longer to load than the rest of the help
)
app.meta.group_parameters = COMMON
app.meta.suppress_keyboard_interrupt = False  # `cli.main` says what an interrupt leaves
app.command(run_app.app, name="*")
app.command(content_app.app, name="*")


@app.command
def init(
    directory: Annotated[str, Parameter(name="DIR", help="The directory of the project; created if it is missing.")] = ".",
    /,
    *,
    context: Shared,
) -> int:
    """Write the files of a new project: prefect.yaml, mirror.yaml with its JSON schema, and automations/."""
    from prefect_dist.cli.init import init

    return init(context, directory)


@app.command
def resolve(
    reference: Annotated[str, Parameter(name="REF", help="An image, such as redis:7.")],
    /,
    *,
    network: NetworkOptions = NetworkOptions(),
    login: LoginOptions = LoginOptions(),
    context: Shared,
) -> int:
    """Show what a reference stands for now: its digest, media type and size."""
    from prefect_dist.cli.remote import resolve

    return resolve(context, reference, network, login)


@app.command
def catalog(
    registry: Annotated[str, Parameter(name="HOST", help="A registry, such as registry.example:5000.")],
    /,
    *,
    filter: Annotated[  # noqa: A002 - the option's name
        str | None, Parameter(name="--filter", help="List the repositories that this regular expression matches as a whole.")
    ] = None,
    network: NetworkOptions = NetworkOptions(),
    login: LoginOptions = LoginOptions(),
    context: Shared,
) -> int:
    """List the repositories of a registry, in its order, if it shows them."""
    from prefect_dist.cli.remote import catalog

    return catalog(context, registry, network, login, pattern=filter)


@app.command
def config(
    file: Annotated[str, Parameter(name="FILE", help="The configuration of a mirror (YAML).")],
    /,
    *,
    dialect: From = "dist",
    to: To = None,
    context: Shared,
) -> int:
    """Check the configuration of a mirror, and show what it comes to. No registry is asked."""
    from prefect_dist.cli.config import config

    return config(context, file, dialect, to or [])


@app.command
def tags(
    repository: Annotated[str, Parameter(name="REPO", help="A repository, such as redis.")],
    /,
    *,
    filter: Annotated[  # noqa: A002 - the option's name
        str | None, Parameter(name="--filter", help="List the tags that this regular expression matches as a whole.")
    ] = None,
    network: NetworkOptions = NetworkOptions(),
    login: LoginOptions = LoginOptions(),
    context: Shared,
) -> int:
    """List the tags of a repository, in the registry's order."""
    from prefect_dist.cli.remote import tags

    return tags(context, repository, network, login, pattern=filter)


@app.command(usage="Usage: dist fetch-object [OPTIONS] REF [OBJECT] [HINT...]")
def fetch_object(
    locator: Annotated[str, Parameter(name="REF", help="An image, or its locator where OBJECT follows.")],
    object_and_hints: Annotated[
        list[str] | None,
        Parameter(name="OBJECT HINT", help="A tag or digest; hints are mediatype:… and size:…, and help to find it."),
    ] = None,
    /,
    *,
    network: NetworkOptions = NetworkOptions(),
    login: LoginOptions = LoginOptions(),
    context: Shared,
) -> int:
    """Write one object to standard output, verified: a manifest, an index, a config or a layer.

    Given as REF, or as locator, object and hints apart: docker.io/library/redis sha256:…
    """
    from prefect_dist.cli.remote import fetch_object

    return fetch_object(context, locator, object_and_hints or [], network, login)


@app.command
def push_object(
    target: Annotated[str, Parameter(name="REF", help="A repository, or what to call a manifest there.")],
    digest: Annotated[str, Parameter(name="DIGEST", help="A blob of the content store.")],
    media_type: Annotated[str | None, Parameter(name="TYPE", help="Its media type, which a manifest needs.")] = None,
    /,
    *,
    network: NetworkOptions = NetworkOptions(),
    login: LoginOptions = LoginOptions(),
    context: Shared,
) -> int:
    """Bring one object from the content store to a registry: a layer, a config, a manifest or an index."""
    from prefect_dist.cli.push import push_object

    return push_object(context, target, digest, media_type, network=network, login=login)


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    store: Annotated[
        str | None,
        Parameter(help="Content store: a path or fsspec URL. Default: the configuration's, $DIST_STORE, or user data."),
    ] = None,
    store_option: Annotated[
        list[str] | None,
        Parameter(negative=(), help="name=value for the store's file system, such as endpoint_url=https://…; repeatable."),
    ] = None,
    timeout: Annotated[float | None, Parameter(validator=POSITIVE, help="Seconds for the whole command.")] = None,
    connect_timeout: Annotated[float, Parameter(validator=POSITIVE, help="Seconds for one connection.")] = 30,
    output: Annotated[Output, Parameter(help="What is written to standard output.")] = "text",
    debug: Annotated[bool, Parameter(negative=(), help="Logs and tracebacks on standard error.")] = False,
) -> int:
    """Take the common options and hand the rest to a command; its exit code."""
    from prefect_dist.cli.ending import run_endable

    command, bound, shared = app.parse_args(tokens, exit_on_error=False, print_error=False)
    chosen, origin = choose_store(store)
    context = Context(
        store=chosen,
        store_from=origin,
        store_options=_store_options(store_option),
        timeout_s=timeout,
        connect_timeout_s=connect_timeout,
        output=output,
        debug=debug,
    )
    extra = dict.fromkeys(shared, context)
    return run_endable(lambda: command(*bound.args, **bound.kwargs, **extra), timeout_s=timeout)


def _store_options(texts: list[str] | None) -> dict[str, Any]:
    if not texts:
        return {}
    from prefect_dist.cli.inputs import store_options

    return store_options(texts)
