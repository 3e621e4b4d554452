"""The commands of `dist`, their groups and help, and the global options.

The function of a command declares the options and does the work. Its module is imported when the command runs, or for its help.
To keep help quick, the modules of commands import Prefect, httpx, pydantic and fsspec only inside functions.
"""

from typing import Annotated, Any

from cyclopts import App, Group, Parameter

from prefect_dist.cli.options import Context, Output, duration, find_named_store, option

HELP = """Mirror OCI and Docker images between registries, through a content store. Transfers are verified and can be resumed.

Image names are expanded as by Docker: redis is docker.io/library/redis:latest.
"""
RUNS = Group("Prefect runs", sort_key=1)
REGISTRIES = Group("Registries, without Prefect", sort_key=2)
STORE = Group("Content store, without Prefect", sort_key=3)
SETUP = Group("Configuration, without Prefect", sort_key=4)
OPTIONS = Group("Options", sort_key=5)
GLOBAL_OPTIONS = Group("Options of all commands", sort_key=6)


def explain_unknown(command: str) -> str:
    """Return the message for an unknown command, with the most similar command."""
    import difflib

    similar = difflib.get_close_matches(command, [name for name in app if not name.startswith("-")], n=1)
    return f"unknown command {command!r}{f', did you mean {similar[0]}?' if similar else ''} (see dist --help)"


def _version() -> str:
    from importlib import metadata

    return metadata.version("prefect-dist")


app = App(
    name="dist",
    help=HELP,
    version=_version,
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
    help_format="plaintext",  # a parser of Markdown takes longer to load than the rest of the help
)
for flag in ("--help", "-h", "--version"):
    app[flag].group = GLOBAL_OPTIONS
app.meta.group_parameters = GLOBAL_OPTIONS
app.meta.suppress_keyboard_interrupt = False  # `cli.main` handles interrupts


def _add(group: Group, path: str, text: str, **options: Any) -> None:
    """Register the function at `path`, MODULE:FUNCTION in cli/. `text` is the help, `options` are for `App.command`."""
    app.command(f"prefect_dist.cli.{path}", group=group, group_parameters=OPTIONS, help=text, **options)


_add(
    RUNS,
    "fetch:fetch",
    "Download images to the content store, and record their names.",
    usage="Usage: dist fetch [OPTIONS] REF...",
)
_add(RUNS, "fetch:pull", "Fetch one platform of an image, and unpack its root file system into a directory.")
_add(
    RUNS,
    "push:push",
    "Upload an image from the content store to a registry, layout or archive: missing content first, the tag last.",
)
_add(
    RUNS,
    "copy:copy",
    "Copy one image, or all tags of a repository, between registries, layouts, archives and the content store.\n\n"
    "The content passes through the content store. dist push is the short form for an image of the store.",
    usage="Usage: dist copy [OPTIONS] SRC DST",
)
_add(RUNS, "mirror:mirror", "Mirror the images of a configuration to their targets: missing content first, each tag last.")
_add(RUNS, "mirror:seed", "Copy many images to registries, each under its own repository and tag.")
_add(RUNS, "mirror:check", "Check each mirrored tag against the lock file, with all its manifests, blobs and referrers.")
_add(RUNS, "upkeep:verify", "Hash all blobs again, move corrupt blobs to quarantine, and check that each image is complete.")
_add(RUNS, "upkeep:gc", "Remove blobs that no name and no active run needs, and the leftovers of dead runs.")

_add(REGISTRIES, "remote:resolve", "Show the digest, media type and size of an image.")
_add(REGISTRIES, "remote:tags", "List the tags of a repository, in the order of the registry.")
_add(REGISTRIES, "remote:catalog", "List the repositories of a registry that has a catalog.")
_add(
    REGISTRIES,
    "remote:fetch_object",
    "Write one verified object to standard output: a manifest, an index, a config or a layer.\n\n"
    "Name the object by one REF, or by its repository, OBJECT and HINTs: docker.io/library/redis sha256:… size:1234",
    usage="Usage: dist fetch-object [OPTIONS] REF [OBJECT] [HINT...]",
)
_add(
    REGISTRIES,
    "push:push_object",
    "Upload one object from the content store: a layer, a config, a manifest or an index.",
    usage="Usage: dist push-object [OPTIONS] REF DIGEST [TYPE]",
)

_add(STORE, "content:ls", "List the blobs, the newest first.", alias="list", usage="Usage: dist ls [OPTIONS] [PREFIX...]")
_add(STORE, "content:get", "Write a verified blob to standard output.", usage="Usage: dist get DIGEST")
_add(STORE, "content:active", "List the ingests that are in flight or were interrupted.")
_add(
    STORE,
    "ingest:ingest",
    "Write standard input to the content store, and print its digest.\n\n"
    "With --resume, standard input must be the whole content again. Its first part is compared with the stored part by digest.",
)
_add(STORE, "deletion:delete", "Delete blobs that no name needs.", usage="Usage: dist delete [OPTIONS] DIGEST...")
_add(STORE, "edit:edit", "Edit a copy of a blob, store it as a new blob, and print its digest.")
_add(STORE, "names:names", "List the names of images, with their digests.", usage="Usage: dist names [OPTIONS] [NAME...]")
_add(
    STORE,
    "deletion:rm",
    "Remove names. Their content stays until dist gc removes it.",
    alias="rmi",
    usage="Usage: dist rm NAME...",
)
_add(
    STORE,
    "archive:export",
    "Write images to a tar archive that skopeo, docker load and other programs read.",
    usage="Usage: dist export NAME... FILE",
)
_add(
    STORE, "archive:import_", "Import the images of a tar archive: an OCI layout, or the output of docker save.", name="import"
)
_add(STORE, "fetch:unpack", "Unpack an image into a directory, with all layers verified, and print its chain ID.")

_add(
    SETUP,
    "init:init",
    "Write the files of a new project: prefect.yaml, mirror.yaml with its JSON schema, and automations/.",
    usage="Usage: dist init [DIR]",
)
_add(
    SETUP,
    "server:server",
    "Show, start, stop or open the local Prefect server, which run commands start without PREFECT_API_URL.",
    usage="Usage: dist server [OPTIONS] status|start|stop|open [RUN]",
)
_add(SETUP, "config:config", "Validate the configuration of a mirror, and show its entries. No registry is contacted.")


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    store: Annotated[
        str | None,
        Parameter(help="Content store: a path or fsspec URL. Default: store of the configuration, $DIST_STORE, or user data."),
    ] = None,
    store_option: Annotated[
        list[str] | None,
        option("NAME=VALUE for the file system of the store, such as endpoint_url=https://…; repeatable."),
    ] = None,
    timeout: Annotated[float | None, duration("Time for the whole command, such as 30m; without a unit: seconds.")] = None,
    connect_timeout: Annotated[float, duration("Time to wait for a connection, such as 10s; without a unit: seconds.")] = 30,
    output: Annotated[Output, Parameter(help="Format of standard output.")] = "text",
    debug: Annotated[bool, option("Write logs and tracebacks to standard error.")] = False,
) -> int:
    """Read the global options, run the command, and return the exit code."""
    from prefect_dist.cli.signals import run_interruptible

    command, bound, shared = app.parse_args(tokens, exit_on_error=False, print_error=False)
    context = Context(
        named_store=find_named_store(store),
        store_options=_store_options(store_option),
        timeout_s=timeout,
        connect_timeout_s=connect_timeout,
        output=output,
        debug=debug,
    )
    extra = dict.fromkeys(shared, context)
    return run_interruptible(lambda: command(*bound.args, **bound.kwargs, **extra), timeout_s=timeout)


def _store_options(texts: list[str] | None) -> dict[str, Any]:
    if not texts:
        return {}
    from prefect_dist.cli.inputs import parse_store_options

    return parse_store_options(texts)
