"""What people type, turned into values. Every refusal is the user's to correct: exit code 2."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from prefect_dist.cli.context import Context
from prefect_dist.cli.errors import BadInput
from prefect_dist.cli.options import Dialect, NetworkOptions
from prefect_dist.ocispec import Digest, Platform, Reference, units
from prefect_dist.ocispec.errors import InvalidInput, Mistakes, Unsupported
from prefect_dist.ocispec.reference import expand
from prefect_dist.storage import ContentStore, open_store, options

if TYPE_CHECKING:
    from prefect_dist.mirror.config import Mirror, Parser
    from prefect_dist.remotes import Hosts

T = TypeVar("T")
_BLOCK = "block:"


def reference(text: str) -> Reference:
    """The image that a person means by `text`, short names included; a digest in it is a whole one."""
    if not text:
        raise BadInput("reference: it is empty, expected an image such as redis:7")
    expanded = expand(text)
    try:
        parsed = Reference.parse(expanded)
        parsed.pinned_digest()
    except (InvalidInput, Unsupported) as exc:
        tell = text != expanded and "@" not in text  # before an @ there may be a password
        raise BadInput(f"{exc} (from {text!r})" if tell else str(exc)) from exc
    return parsed


def repository(text: str) -> Reference:
    """The repository that a person means by `text`, short names included."""
    found = reference(text)
    if any(mark in text.rpartition("/")[2] for mark in ":@"):  # what was typed: a tag is there now in any case
        raise BadInput(f"repository {text!r}: expected no tag or digest, as in {found.locator}")
    return Reference.parse(found.locator)


def registry(text: str) -> str:
    """The registry that a person means by `text`, `host[:port]`."""
    host = _read(lambda: Reference.parse(f"{text}/x")).host
    if host != text:
        raise BadInput(f"registry {text!r}: expected a host and nothing behind it, as in {host}")
    return host


def digest(text: str) -> Digest:
    """A whole digest."""
    return _read(lambda: Digest.parse(text))


def pattern(text: str) -> re.Pattern[str]:
    """A regular expression."""
    try:
        return re.compile(text)
    except re.error as exc:
        raise BadInput(f"pattern {text!r}: no regular expression ({exc})") from exc


def key(text: str) -> str:
    """What an ingest is called."""
    if not text.isprintable() or not text.strip():
        raise BadInput(f"key {text!a}: expected printable text")
    return text


def platforms(texts: Sequence[str]) -> tuple[Platform, ...] | None:
    """The platforms that are asked for; None for all."""
    if not texts or "all" in texts:
        return None
    return _read(lambda: tuple(Platform.parse(text) for text in texts))


def platform(text: str | None) -> Platform:
    """The platform of that name, or that of this machine."""
    return Platform.local() if text is None else _read(lambda: Platform.parse(text))


def seconds(text: str) -> float:
    """The seconds in a duration such as 24h."""
    return _read(lambda: units.seconds(text))


def hosts(network: NetworkOptions) -> "Hosts":
    """How registries are reached; the files that say so are there and can be used."""
    from prefect_dist.remotes import Hosts  # and with it the HTTP client, which most commands do without

    if network.hosts is None and network.ca_file is None and not network.insecure:
        return Hosts(plain_http=network.plain_http)  # and pydantic, a tenth of a second, is not needed
    from prefect_dist.mirror import hosts_file as config

    return _read(
        lambda: config.hosts(network.hosts, plain_http=network.plain_http, ca_file=network.ca_file, insecure=network.insecure)
    )


def mirror(path: str, dialect: Dialect = "dist", to: Sequence[str] = ()) -> "Mirror":
    """The configuration of a mirror, in our form or in one of another program's."""
    from prefect_dist.mirror import config

    parse = _choose_parser(dialect, to)
    return _read(lambda: config.load(path, parse))


def read_audited_mirror(path: str, dialect: Dialect = "dist", to: Sequence[str] = ()) -> "Mirror":
    """What a check audits: the configuration of a mirror, or a lock file without one."""
    from prefect_dist.mirror import config, lock_config

    parse = lock_config.accept_lock(_choose_parser(dialect, to))
    return _read(lambda: config.load(path, parse))


def _choose_parser(dialect: Dialect, to: Sequence[str]) -> "Parser":
    from prefect_dist.mirror import skopeo

    if bool(to) != (dialect == "skopeo"):
        raise BadInput("expected --from skopeo and --to together: our own files say where images go")
    return skopeo.choose_parser(dialect, to)


def make_seed_mirror(to: Sequence[str], **said: Any) -> "Mirror":
    """Return the configuration of images and registries."""
    from prefect_dist.mirror import config

    return _read(lambda: config.make_seed_mirror(to, **said))


def images(lines: Iterable[str]) -> list[str]:
    """The images that are read, one in a line; `#` begins a comment."""
    found = []
    for number, line in enumerate(lines, start=1):
        if text := line.partition("#")[0].strip():
            try:
                found.append(str(reference(text)))
            except BadInput as exc:
                raise BadInput(f"standard input:{number}: {exc}") from exc
    if not found:
        raise BadInput("standard input: expected images, one in a line; there are none")
    return found


def unused_directory(text: str) -> str:
    """A directory for something new, wherever runs are: it is not there, or empty."""
    path = Path(text).expanduser().absolute()
    try:
        if any(path.iterdir()):
            raise BadInput(f"directory {path}: expected none, or an empty one; it has files")
    except FileNotFoundError:
        pass
    except OSError as exc:
        raise BadInput(f"directory {path}: {exc.strerror}") from exc
    return str(path)


def store(context: Context) -> ContentStore:
    """The content store of this command, which need not exist."""
    if context.store.startswith(_BLOCK):
        raise BadInput(f"store {context.store}: only runs know Prefect's blocks; give a path or URL")
    return _read(lambda: open_store(context.store, options=context.store_options))


def store_of_run(context: Context) -> ContentStore | None:
    """The store of a run that is to begin; None for what only Prefect knows, and only the run can tell."""
    return None if context.store.startswith(_BLOCK) else store(context)


def store_of(context: Context, wanted: "Mirror") -> str:
    """The store for a configuration: that of `--store`, else the file's, else `$DIST_STORE`'s or the default."""
    return wanted.store if wanted.store is not None and context.store_from != "option" else absolute_location(context.store)


def warnings(context: Context, wanted: "Mirror") -> list[str]:
    """Return the warnings of a configuration, and one if its images would silently be kept in the default store."""
    if wanted.store is not None or context.store_from != "default":
        return list(wanted.warnings)
    place = f"images are kept in {absolute_location(context.store)}; set store in the file, DIST_STORE or --store"
    if wanted.is_lock:  # which has no place for a store
        place = f"a repair looks for images in {absolute_location(context.store)}; set --store or DIST_STORE"
    return [*wanted.warnings, f"{wanted.path}: no store is set, so {place}"]


def writable(context: Context) -> None:
    """See that a run will be able to write to the store."""
    if opened := store_of_run(context):
        _read(opened.prepare)


def store_options(texts: Sequence[str]) -> dict[str, Any]:
    """Options of the store's file system."""
    return _read(lambda: options.parse(texts))


def absolute_location(url: str) -> str:
    """The store's location as it means the same in any directory: runs are recorded with it, and may be repeated elsewhere."""
    return url if "://" in url or url.startswith(_BLOCK) else str(Path(url).expanduser().absolute())


def _read(parse: Callable[[], T]) -> T:
    try:
        return parse()
    except Mistakes as exc:
        raise BadInput(*exc.lines) from exc
    except (InvalidInput, Unsupported) as exc:
        raise BadInput(str(exc)) from exc
