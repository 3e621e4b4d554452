"""Reads the configuration of a mirror from a file.

Reading sends no request to a registry. It reports each mistake with file, line and key.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prefect_dist.mirror import yamlfile
from prefect_dist.mirror.access import read_access, regsync_advice
from prefect_dist.mirror.claims import list_known_conflicts
from prefect_dist.mirror.entries import EntryFactory
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.hosts_file import CONCURRENCY, MAX_CONCURRENCY
from prefect_dist.mirror.locations import BLOCK
from prefect_dist.mirror.schedule import Schedule, list_idle_schedules
from prefect_dist.mirror.sections import MirrorFile, StoreSection
from prefect_dist.mirror.templates import resolve_secret
from prefect_dist.mirror.validation import Checked, MistakeLog, list_idle_keys, located, validate_parts
from prefect_dist.mirror.yamlfile import Document, Place
from prefect_dist.ocispec.errors import InvalidInput, Mistakes
from prefect_dist.remotes import Credentials, Hosts
from prefect_dist.remotes.advice import TlsAdvice
from prefect_dist.storage.options import has_userinfo, is_secret, refuse_userinfo
from prefect_dist.transfer.pool import Grain

_SEED = "seed"
SEED_OPTIONS = _SEED
"""The path of a configuration from `make_seed_mirror`."""
_PLATFORMS = ("defaults", "platforms")
_NO_LOCK = "no lock file: this mirror cannot be checked or pruned; set lock to an absolute path or a URL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """The configuration of a mirror.

    `way` is advice on how to configure credentials; None if there is no file to configure. `store` may be `block:NAME`;
    without it, the run needs a parameter. `credentials` have a host, or a host and a namespace, as keys; the Prefect blocks in
    `credential_blocks` contain further credentials. `lock` is a path or URL, or None for no lock file. No run follows
    `schedules`. `warnings` has a line for each key without effect. `is_lock` is True for a configuration made from a lock file.
    """

    path: str
    way: str | None
    name: str
    entries: tuple[Entry, ...]
    hosts: Hosts
    store: str | None = None
    store_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    credentials: Mapping[str, Credentials] = field(default_factory=dict, repr=False)
    credential_blocks: tuple[str, ...] = ()
    seed: tuple[Entry, ...] = ()
    lock: str | None = None
    concurrency: int = CONCURRENCY
    grain: Grain = "descriptor"
    schedules: tuple[Schedule, ...] = ()
    warnings: tuple[str, ...] = ()
    is_lock: bool = False


Parser = Callable[[Document], Mirror]


def parse_mirror(document: Document, *, has_lock: bool = True) -> Mirror:
    """Return the configuration in a document of this program or of regsync. Without `has_lock`, runs keep no lock file.

    Raises:
        Mistakes: the configuration is invalid; each line names file, line and key of a mistake.
    """
    checked = validate_parts(MirrorFile, document)
    file, mistakes = checked.value, MistakeLog(document, checked.mistakes)
    if file is None:
        raise Mistakes(*checked.mistakes)
    if not file.sync and file.seed is None and not checked.mistakes:
        raise InvalidInput("expected sync or seed", subject=document.where(()))
    access = read_access(file, document, checked.list_positions("creds", len(file.creds)), mistakes)
    store, options = mistakes.attempt(lambda: _store(file.store, document)) or (None, {})
    stem = stem_of(document)
    lock = file.lock or (f"{stem}.lock.json" if document.is_file else None)
    lock_place = mistakes.attempt(lambda: document.resolve_path(lock, ("lock",))) if has_lock and lock else None
    factory = EntryFactory(document, file.defaults, mistakes)
    sync, seed = _make_entries(file, checked, factory)
    if mistakes:
        mistakes.add((*list_known_conflicts(sync), *list_known_conflicts(seed)))
    mistakes.raise_mistakes()
    section, advise = ("creds", regsync_advice) if file.creds else ("registries", TlsAdvice.of_file)
    return Mirror(
        path=document.path,
        way=f"set user and pass{'' if file.creds else ', or block,'} in {section} of {document.path}",
        name=file.name or stem,
        store=store,
        store_options=options,
        hosts=Hosts(named=access.hosts, advice=advise(f"an entry for {{server}} in {section} of {document.path}")),
        credentials=access.credentials,
        credential_blocks=access.blocks,
        entries=tuple(sync),
        seed=tuple(seed),
        lock=lock_place,
        concurrency=file.concurrency or min(file.defaults.parallel or CONCURRENCY, MAX_CONCURRENCY),
        grain=file.grain,
        schedules=tuple(factory.schedules),
        warnings=(
            *list_idle_keys(file, document, factory.idle),
            *list_idle_schedules(list(factory.schedules)),
            *([] if lock else [f"{document.path}: {_NO_LOCK}"]),
        ),
    )


def load(path: str, parse: Parser = parse_mirror) -> Mirror:
    """Return the configuration in a file. Relative paths in the file start at its directory.

    Raises:
        InvalidInput: the configuration is invalid; the message names file, line and key.
        Denied, Unavailable: see `mirror.yamlfile.read`.
    """
    return parse(yamlfile.read(path))


def make_seed_mirror(
    to: Sequence[str],
    *,
    images: Sequence[str] = (),
    file: str | None = None,
    platforms: Sequence[str] | None = None,
    rewrite_index: bool = False,
    referrers: bool = False,
    lock: str | None = None,
) -> Mirror:
    """Return a configuration with only a `seed` section, which command options define instead of a file.

    `to` are registries, each optionally with a path that precedes the repositories. `file` contains further images, one per
    line. Without `lock`, the run keeps no lock file.

    Raises:
        InvalidInput: an option is invalid, or `file` is not readable.
    """
    options = {
        "platforms": None if platforms is None else list(platforms),
        "rewriteIndex": rewrite_index,
        "referrers": referrers,
    }
    section = {"images": list(images), "list": file, "to": list(to), **options}
    data = {"name": _SEED, "seed": section, "lock": lock}  # a section ignores keys without a value
    return without_file(parse_mirror(Document(path=SEED_OPTIONS, data=data, lines={}), has_lock=lock is not None))


def without_file(mirror: Mirror) -> Mirror:
    """Return a configuration with messages that recommend command options instead of keys of a file."""
    return replace(mirror, way=None, hosts=replace(mirror.hosts, advice=None))


def stem_of(document: Document) -> str:
    """Return the name of a document's file or block without suffix."""
    return Path(document.path.removeprefix(BLOCK)).stem


_IN_USE: ContextVar[Mirror | None] = ContextVar("configuration", default=None)


@contextmanager
def use_config(mirror: Mirror) -> Iterator[None]:
    """Make runs in the block use a configuration that the caller has read. The runs do not read its file again."""
    token = _IN_USE.set(mirror)
    try:
        yield
    finally:
        _IN_USE.reset(token)


def find_config_in_use(path: str) -> Mirror | None:
    """Return the configuration that the caller of the run has read from `path`, if any."""
    mirror = _IN_USE.get()
    return mirror if mirror is not None and mirror.path == path else None


def _make_entries(file: MirrorFile, checked: Checked[MirrorFile], factory: EntryFactory) -> tuple[list[Entry], list[Entry]]:
    """Return the valid entries of `sync` and of `seed`."""
    if _PLATFORMS in checked.wrong:  # without the invalid platforms, rewriteIndex would be a further mistake
        return [], []
    numbers = checked.list_positions("sync", len(file.sync))
    sync = (factory.make_sync_entry(section, ("sync", number)) for number, section in zip(numbers, file.sync, strict=True))
    seed = [] if file.seed is None else list(factory.make_seed_entries(file.seed, (_SEED,)))
    return [entry for entry in sync if entry is not None], seed


def _store(section: StoreSection | None, document: Document) -> tuple[str | None, dict[str, Any]]:
    """Return the URL of the content store and the options of its file system, with templates replaced.

    Raises:
        InvalidInput: the URL contains a password, a template fails, or Prefect would keep a literal secret.
    """
    if section is None:
        return None, {}
    at = document.where(("store",))
    url = resolve_secret(section.url, at=at)
    with located(at):
        refuse_userinfo(url)
    place = url if url.startswith(BLOCK) else document.resolve_path(url, ("store",))
    return place, _store_options(section.options, document, ("store", "options"))


def _store_options(options: Mapping[str, Any], document: Document, place: Place) -> dict[str, Any]:
    return {name: _store_option(name, value, document, (*place, name)) for name, value in options.items()}


def _store_option(name: str, value: object, document: Document, place: Place) -> object:
    at = document.where(place)
    if isinstance(value, dict):
        return _store_options(value, document, place)
    if not isinstance(value, str):
        return yamlfile.plain(value)
    text = resolve_secret(value, at=at)
    if has_userinfo(text):
        raise InvalidInput("expected a URL without user and password; use options such as key and secret", subject=at)
    if is_secret(name, text):
        document.refuse_secret(value, place)
    return text
