"""Import: the images of a tar stream into a store. Blobs first, as they come; names last, of images that are whole."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import IO

from ocispec import Descriptor, fields, manifest, mediatypes
from ocispec.errors import DistError, InvalidInput
from storage import completeness
from storage.archive import docker, layout
from storage.archive.received import Received, receive
from storage.store import ContentStore

_Taken = dict[str, Descriptor]


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Imported:
    """What became of an image: its name is recorded, or `error` says why not; `name` is None where it has none."""

    name: str | None
    descriptor: Descriptor | None
    error: DistError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed:
    """An image as the archive lists it; `root` gives its manifest, which may have to be made first."""

    at: str
    names: tuple[str, ...]
    root: Callable[[], Descriptor]


def import_images(store: ContentStore, file: IO[bytes], *, source: str, name: str | None = None) -> tuple[Imported, ...]:
    """Bring the images of an archive into the store, and record the names of those that are whole.

    `file` need not seek; `source` says in records and errors where it is from. `name` is for an image to which the archive
    gives no whole name. What counts as whole is said by `storage.completeness.held_children`. One image's error is no
    other's; what is wrong with the whole archive is raised before any name is recorded, and whole blobs that came are kept.

    Raises:
        InvalidInput: no archive of images, a list that cannot be read, or a bad `name`.
        Corrupt: a damaged stream, or content that is not what its name promises.
        StoreFull, Denied, Unavailable: the store or the stream.
    """
    fallback = () if name is None else (layout.whole(name),)
    archive = f"archive {source}"
    received = receive(store, file, source=archive)
    taken: _Taken = {}
    outcomes: list[Imported] = []
    for image in _listed(store, received):
        outcomes += _import(store, image, image.names or fallback, source=archive, taken=taken)
    if taken:
        store.update_index()
    return tuple(outcomes)


def _listed(store: ContentStore, received: Received) -> list[_Listed]:
    """The images of the archive, by the list that says most."""
    if (raw := received.lists.get(layout.INDEX)) is not None:
        at = f"{received.source}: {layout.INDEX}"
        roots = manifest.children(raw, mediatypes.OCI_INDEX, at=at)
        images = [_of_index(root, at=f"{at}.manifests[{number}]") for number, root in enumerate(roots)]
    elif (raw := received.lists.get(layout.DOCKER_LIST)) is not None:
        items = fields.parse_objects(raw, at=f"{received.source}: {layout.DOCKER_LIST}")
        images = [_of_docker(store, received, item, at=at) for at, item in items]
    else:
        raise InvalidInput(f"{received.source}: expected {layout.INDEX} or {layout.DOCKER_LIST}; it is no archive of images")
    if not images:
        raise InvalidInput(f"{received.source}: it lists no images")
    return images


def _of_index(root: Descriptor, *, at: str) -> _Listed:
    name = layout.name_of(root)
    others = tuple((key, value) for key, value in root.annotations if key not in layout.NAMES)
    bare = replace(root, annotations=others)
    return _Listed(at=at, names=() if name is None else (name,), root=lambda: bare)


def _of_docker(store: ContentStore, received: Received, item: fields.Json, *, at: str) -> _Listed:
    names = tuple(dict.fromkeys(map(layout.whole, fields.strings(item, "RepoTags", at=at))))
    return _Listed(at=at, names=names, root=partial(docker.build, store, received, item, at=at))


def _import(store: ContentStore, image: _Listed, names: tuple[str, ...], *, source: str, taken: _Taken) -> list[Imported]:
    children = completeness.held_children(store)
    try:
        root = image.root()
        completeness.require(store, root, children=children, name=", ".join(names) or image.at)
        if not names:
            raise InvalidInput(f"{image.at}: the archive gives {root} no whole name; say what to call it")
    except DistError as exc:
        return [Imported(name=name, descriptor=None, error=exc) for name in names or (None,)]
    return [_record(store, name, root, source=source, taken=taken) for name in names]


def _record(store: ContentStore, name: str, root: Descriptor, *, source: str, taken: _Taken) -> Imported:
    first = taken.setdefault(name, root)
    try:
        if first.content != root.content:
            raise InvalidInput(f"{name}: {source} has it as {first} and as {root}; only the first was taken")
        with store.unswept():
            completeness.require(store, root, children=completeness.held_children(store), name=name)
            store.names.put(name, root, source=source, platforms=completeness.held_platforms(store, root))
    except DistError as exc:
        return Imported(name=name, descriptor=root, error=exc)
    return Imported(name=name, descriptor=root)
