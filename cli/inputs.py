"""Parsing of command-line arguments and input files. A refused value raises `BadInput`: exit code 2."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from posixpath import expanduser
from typing import TYPE_CHECKING, Any, TypeVar

from prefect_dist.cli.options import Context, NetworkOptions
from prefect_dist.mirror.locations import BLOCK
from prefect_dist.ocispec import Digest, Platform, Reference, reference, units
from prefect_dist.ocispec.errors import InvalidInput, Mistakes, Unsupported
from prefect_dist.ocispec.reference import expand, find_scheme, has_object, is_registry, remove_comment

if TYPE_CHECKING:
    from prefect_dist.mirror.config import Mirror
    from prefect_dist.mirror.run import MirrorJob
    from prefect_dist.remotes import Hosts
    from prefect_dist.storage import ContentStore

T = TypeVar("T")


class BadInput(Mistakes):
    """A wrong argument or file, with a line per mistake."""


def parse_reference(text: str) -> Reference:
    """Return the image that `text` names, with a short name expanded and a digest checked."""
    if not text:
        raise BadInput("reference: expected an image, such as redis:7, got an empty string")
    expanded = expand(make_locator_absolute(text))
    try:
        parsed = Reference.parse(expanded)
        parsed.pinned_digest()
    except (InvalidInput, Unsupported) as exc:
        is_shown = text != expanded and "@" not in text  # the text before an @ may contain a password
        raise BadInput(f"{exc} (from {text!r})" if is_shown else str(exc)) from exc
    return parsed


def parse_repository(text: str) -> Reference:
    """Return the repository named `text`, with a short name expanded."""
    found = parse_reference(text)
    if has_object(text):  # `found` has a tag even if `text` has none
        raise BadInput(f"repository {text!r}: expected no tag or digest, as in {found.locator}")
    return found.without_object()


def parse_catalog(text: str) -> str:
    """Return the registry named `text`, as `host[:port]`, or the locator `scheme:place` of another remote."""
    if not is_registry(text):
        return parse_repository(text).locator
    host = _require_valid(lambda: Reference.parse(f"{text}/x")).host
    if host != text:
        raise BadInput(f"registry {text!r}: expected only a host, as in {host}")
    return host


def parse_digest(text: str) -> Digest:
    """Return a complete digest."""
    return _require_valid(lambda: Digest.parse(text))


def compile_pattern(text: str) -> re.Pattern[str]:
    """Return the compiled regular expression."""
    try:
        return re.compile(text)
    except re.error as exc:
        raise BadInput(f"pattern {text!r}: not a regular expression ({exc})") from exc


def check_key(text: str) -> str:
    """Return the key of an ingest."""
    if not text.isprintable() or not text.strip():
        raise BadInput(f"key {text!a}: expected printable text")
    return text


def parse_platforms(texts: Sequence[str]) -> tuple[Platform, ...] | None:
    """Return the selected platforms, or None for every platform."""
    if not texts or "all" in texts:
        return None
    return _require_valid(lambda: tuple(Platform.parse(text) for text in texts))


def parse_platform(text: str | None) -> Platform:
    """Return the platform named `text`, or the platform of the machine if `text` is None."""
    return Platform.local() if text is None else _require_valid(lambda: Platform.parse(text))


def parse_duration(text: str) -> float:
    """Return the seconds in a duration such as 24h."""
    return _require_valid(lambda: units.seconds(text))


def load_hosts(network: NetworkOptions) -> "Hosts":
    """Return the connection settings of registries, with the hosts file and the CA bundle of the options."""
    from prefect_dist.remotes import Hosts

    if network.hosts is None and network.ca_file is None and not network.insecure:
        return Hosts(plain_http=network.plain_http)  # loading pydantic takes a tenth of a second
    from prefect_dist.mirror import hosts_file as config

    return _require_valid(
        lambda: config.hosts(network.hosts, plain_http=network.plain_http, ca_file=network.ca_file, insecure=network.insecure)
    )


def load_mirror(path: str) -> "Mirror":
    """Return the configuration of a mirror, read from a file."""
    from prefect_dist.mirror import config

    return _require_valid(lambda: config.load(path))


def load_audited_mirror(path: str) -> "Mirror":
    """Return the mirror for `check`, read from a configuration or a lock file."""
    from prefect_dist.mirror import config, lock_config

    return _require_valid(lambda: config.load(path, lock_config.parse_audited))


def convert_skopeo(path: str, to: Sequence[str]) -> str:
    """Return the configuration of a mirror, as YAML, that has the images of a skopeo file."""
    from prefect_dist.mirror import skopeo, yamlfile

    return _require_valid(lambda: skopeo.convert_skopeo(yamlfile.read(path), to=to))


def refuse_block(config: str, flow: str | None = None) -> None:
    """Raise an error if `config` names a Prefect block. `flow` is the flow whose deployment can read the block.

    Raises:
        BadInput: `config` begins with `block:`.
    """
    if not config.startswith(BLOCK):
        return
    message = f"{config} is a Prefect block, which commands cannot read; pass a file or URL"
    if flow is not None:
        message += f", or run the deployment: prefect deployment run {flow}/{flow} --param config={config}"
    raise BadInput(message)


def make_seed_mirror(to: Sequence[str], **parameters: Any) -> "Mirror":
    """Return the configuration of images and registries."""
    from prefect_dist.mirror import config

    return _require_valid(lambda: config.make_seed_mirror(to, **parameters))


def make_copy_job(source: str, target: str, **options: Any) -> "MirrorJob":
    """Return the job that copies `source` to `target`."""
    from prefect_dist.mirror import copying

    return _require_valid(lambda: copying.make_copy_job(source, target, **options))


def parse_images(lines: Iterable[str]) -> list[str]:
    """Return the images on standard input, an image per line. A comment begins with `#`."""
    found = []
    for number, line in enumerate(lines, start=1):
        if text := remove_comment(line):
            try:
                found.append(str(parse_reference(text)))
            except BadInput as exc:
                raise BadInput(f"standard input:{number}: {exc}") from exc
    if not found:
        raise BadInput("standard input: expected one image reference per line, got an empty list")
    return found


def check_new_directory(text: str) -> str:
    """Return the absolute path of a missing or empty directory."""
    path = Path(expanduser(text)).absolute()
    try:
        if any(path.iterdir()):
            raise BadInput(f"directory {path}: expected a missing or empty directory, but it has files")
    except FileNotFoundError:
        pass
    except OSError as exc:
        raise BadInput(f"directory {path}: {exc.strerror}") from exc
    return str(path)


def open_store(context: Context) -> "ContentStore":
    """Return the content store of the command. The store need not exist."""
    if context.store.startswith(BLOCK):
        raise BadInput(f"store {context.store}: only Prefect runs can read blocks; give a path or URL")
    from prefect_dist import storage

    return _require_valid(lambda: storage.open_store(context.store, options=context.store_options))


def open_run_store(context: Context) -> "ContentStore | None":
    """Return the content store of a run, or None if a Prefect block defines the store. Only the run can read blocks."""
    return None if context.store.startswith(BLOCK) else open_store(context)


def choose_mirror_store(context: Context, wanted: "Mirror") -> str:
    """Return the location of the store for a configuration: `--store`, then the file's, then `$DIST_STORE` or the default."""
    return wanted.store if wanted.store is not None and context.store_from != "option" else make_absolute(context.store)


def list_warnings(context: Context, wanted: "Mirror") -> list[str]:
    """Return the warnings about a configuration, with a warning if only the default names a store."""
    if wanted.store is not None or context.store_from != "default":
        return list(wanted.warnings)
    store = make_absolute(context.store)
    remedy = f"images are kept in {store}; set store in the file, DIST_STORE or --store"
    if wanted.is_lock:  # a lock file names no store
        remedy = f"a repair reads images from {store}; set --store or DIST_STORE"
    return [*wanted.warnings, f"{wanted.path}: no store is set, so {remedy}"]


def require_writable_store(context: Context) -> None:
    """Create the store of a run if it is missing, and check that it is writable."""
    if store := open_run_store(context):
        _require_valid(store.prepare)


def parse_store_options(texts: Sequence[str]) -> dict[str, Any]:
    """Return the options of the store's file system."""
    from prefect_dist.storage import options

    return _require_valid(lambda: options.parse(texts))


def make_locator_absolute(text: str) -> str:
    """Return the text of a reference with an absolute path, since another process may carry out the run elsewhere."""
    return reference.make_absolute(text, str(Path.cwd()))


def is_locator(path: str) -> bool:
    """Return True for the text of a locator with a scheme, unless a file has this name."""
    return find_scheme(path) is not None and not Path(path).exists()


def make_absolute(location: str) -> str:
    """Return a location that is valid in every directory, since a run may be repeated elsewhere."""
    is_absolute = "://" in location or location.startswith(BLOCK)
    return location if is_absolute else str(Path(expanduser(location)).absolute())


def _require_valid(parse: Callable[[], T]) -> T:
    """Return the result of `parse`, and raise errors as `BadInput`."""
    try:
        return parse()
    except Mistakes as exc:
        raise BadInput(*exc.lines) from exc
    except (InvalidInput, Unsupported) as exc:
        raise BadInput(str(exc)) from exc
