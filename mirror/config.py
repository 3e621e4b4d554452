"""Reads the configuration of a mirror from its file.

Everything that can be known to be wrong is told when the file is read, with file, line and key. No registry is asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prefect_dist.mirror import yamlfile
from prefect_dist.mirror.access import access, of_regsync
from prefect_dist.mirror.claims import known_conflicts
from prefect_dist.mirror.entries import Entries
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.hosts_file import CONCURRENCY, MAX_CONCURRENCY
from prefect_dist.mirror.schedule import Schedule, idle_schedules
from prefect_dist.mirror.sections import MirrorFile, StoreSection
from prefect_dist.mirror.skopeo import SkopeoFile, sources
from prefect_dist.mirror.templates import resolve_secret
from prefect_dist.mirror.validation import Checked, MistakeLog, checked_in_parts, validate, without_effect
from prefect_dist.mirror.yamlfile import Document, Place
from prefect_dist.ocispec.errors import InvalidInput, Mistakes
from prefect_dist.remotes import Credentials, Hosts
from prefect_dist.remotes.advice import TlsAdvice
from prefect_dist.storage.options import has_userinfo, is_secret, refuse_userinfo

_BLOCK = "block:"
_PLATFORMS = ("defaults", "platforms")
_FORGETFUL = "nothing is remembered of what is mirrored, to be checked or pruned later; say lock, an absolute path or a URL"

Dialect = Literal["dist", "skopeo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """The configuration of a mirror.

    `way` says how to give credentials in it. `store` may be `block:NAME`; None is left to whoever starts a run. `credentials`
    are by registry, or registry and namespace; the blocks that `credential_blocks` name have more. `lock` is a path or URL,
    None keeps none. `schedules` are for whoever starts runs. `warnings` name each key that has no effect, a line each.
    `is_lock` says that it was made of a lock file, in which nothing can be configured.
    """

    path: str
    way: str | None
    name: str
    store: str | None
    store_options: Mapping[str, Any] = field(repr=False)
    hosts: Hosts
    credentials: Mapping[str, Credentials] = field(repr=False)
    credential_blocks: tuple[str, ...]
    entries: tuple[Entry, ...]
    seed: tuple[Entry, ...]
    lock: str | None
    concurrency: int
    schedules: tuple[Schedule, ...]
    warnings: tuple[str, ...]
    is_lock: bool = False


def load(path: str, dialect: Dialect = "dist", *, to: Sequence[str] = ()) -> Mirror:
    """Return the configuration in a file, see `parse_config`. Relative paths in it begin at the folder of the file.

    Raises:
        InvalidInput: the file is wrong; the message names file, line and key.
        Denied, Unavailable: see `mirror.yamlfile.read`.
    """
    return parse_config(yamlfile.read(path), dialect, to=to)


def parse_config(document: Document, dialect: Dialect = "dist", *, to: Sequence[str] = ()) -> Mirror:
    """Return the configuration in a document: of this project, of regsync, or by `dialect` of `skopeo sync --src yaml`.

    A file of skopeo's does not say where images go: `to` does, registries with or without a path.

    Raises:
        InvalidInput: it is wrong; the message names file, line and key.
    """
    return _skopeos(document, to) if dialect == "skopeo" else parse_mirror(document)


def parse_mirror(document: Document, *, is_remembered: bool = True) -> Mirror:
    """Return the configuration in a document of this project. If `is_remembered`, results go to a lock file.

    Raises:
        Mistakes: it is wrong; each line names file, line and key of a mistake.
    """
    found = checked_in_parts(MirrorFile, document)
    file, mistakes = found.value, MistakeLog(document, found.mistakes)
    if file is None:
        raise Mistakes(*found.mistakes)
    if not file.sync and file.seed is None and not found.mistakes:
        raise InvalidInput(f"{document.where(())}: expected sync or seed")
    reached = access(file, document, found.kept("creds", len(file.creds)), mistakes)
    store, options = mistakes.attempt(lambda: _store(file.store, document)) or (None, {})
    stem = _stem(document)
    lock = file.lock or (f"{stem}.lock.json" if document.is_file else None)
    lock_place = mistakes.attempt(lambda: document.resolve_path(lock, ("lock",))) if is_remembered and lock else None
    entries = Entries(document, file.defaults, mistakes)
    sync, seed = _entries(file, found, entries)
    if mistakes:
        mistakes.add((*known_conflicts(sync), *known_conflicts(seed)))
    mistakes.refuse()
    return Mirror(
        path=document.path,
        way=f"set user and pass{'' if file.creds else ', or block,'} in {_access_section(file, document)}",
        name=file.name or stem,
        store=store,
        store_options=options,
        hosts=Hosts(named=reached.hosts, advice=_tls_advice(file, document)),
        credentials=reached.credentials,
        credential_blocks=reached.blocks,
        entries=tuple(sync),
        seed=tuple(seed),
        lock=lock_place,
        concurrency=file.concurrency or min(file.defaults.parallel or CONCURRENCY, MAX_CONCURRENCY),
        schedules=tuple(entries.schedules),
        warnings=(
            *without_effect(file, document, entries.idle),
            *idle_schedules(list(entries.schedules)),
            *([] if lock else [f"{document.path}: {_FORGETFUL}"]),
        ),
    )


def _entries(file: MirrorFile, found: Checked[MirrorFile], entries: Entries) -> tuple[list[Entry], list[Entry]]:
    """Return the entries of `sync` and `seed` that have no mistakes."""
    if _PLATFORMS in found.wrong:  # `rewriteIndex` would seem to lack platforms
        return [], []
    numbers = found.kept("sync", len(file.sync))
    synced = (entries.make_sync_entry(section, ("sync", number)) for number, section in zip(numbers, file.sync, strict=True))
    seed = [] if file.seed is None else list(entries.make_seed_entries(file.seed, ("seed",)))
    return [entry for entry in synced if entry is not None], seed


def _skopeos(document: Document, to: Sequence[str]) -> Mirror:
    found = sources(validate(SkopeoFile, document), document, to)
    stem = _stem(document)
    return Mirror(
        path=document.path,
        way=f"say its credentials in {document.path}",
        name=stem,
        store=None,
        store_options={},
        hosts=Hosts(named=found.hosts),
        credentials=found.credentials,
        credential_blocks=(),
        entries=found.entries,
        seed=(),
        lock=document.resolve_path(f"{stem}.lock.json", ()),
        concurrency=CONCURRENCY,
        schedules=(),
        warnings=(),
    )


def _access_section(file: MirrorFile, document: Document) -> str:
    """Return the section with settings of registries: regsync's if the file has it, otherwise ours."""
    return f"{'creds' if file.creds else 'registries'} of {document.path}"


def _tls_advice(file: MirrorFile, document: Document) -> TlsAdvice:
    """Return the advice for registries that the file does not name."""
    at = f"an entry for {{server}} in {_access_section(file, document)}"
    return of_regsync(at) if file.creds else TlsAdvice.of_file(at)


def _store(section: StoreSection | None, document: Document) -> tuple[str | None, dict[str, Any]]:
    """Return the URL of the store and the options of its file system, those that templates name in their place.

    Raises:
        InvalidInput: a URL with a password, or a template with nothing to put in its place; in a text that Prefect keeps, also
            a secret itself.
    """
    if section is None:
        return None, {}
    at = document.where(("store",))
    url = resolve_secret(section.url, at=at)
    try:
        refuse_userinfo(url)
    except InvalidInput as exc:
        raise InvalidInput(f"{at}: {exc}") from None
    place = url if url.startswith(_BLOCK) else document.resolve_path(url, ("store",))
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
        raise InvalidInput(f"{at}: user and password do not belong in a URL; use options such as key and secret")
    if is_secret(name, text):
        document.refuse_secret(value, place)
    return text


def _stem(document: Document) -> str:
    return Path(document.path.removeprefix(_BLOCK)).stem
