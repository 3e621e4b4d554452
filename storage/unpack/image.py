"""Unpacks an image of the content store into a directory.

This module selects the manifest, checks the image before anything is written, and publishes the directory at the end.
`storage.unpack.rootfs` applies the layers.
"""

import contextlib
import errno
import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from prefect_dist.ocispec import Descriptor, Digest, Platform, config
from prefect_dist.ocispec import manifest as documents
from prefect_dist.ocispec.children import walk_tree
from prefect_dist.ocispec.errors import Corrupt, InvalidInput, NotFound, Unsupported, quote_text
from prefect_dist.ocispec.platform import best
from prefect_dist.storage.errors import translate_errors
from prefect_dist.storage.store import ContentStore
from prefect_dist.storage.unpack import layers
from prefect_dist.storage.unpack.rootfs import Rootfs
from prefect_dist.storage.unpack.tree import open_directory, remove, sync

_log = logging.getLogger(__name__)
# The platform under which builders list attestation manifests.
_NO_PLATFORM = Platform(os="unknown", architecture="unknown")


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Unpacked:
    """The result of unpacking: the manifest and config of the image, the number of its layers, and their chain ID.

    `chain_id` is None for an image without layers.
    """

    manifest: Descriptor
    config: Digest
    layers: int
    chain_id: Digest | None
    directory: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class _CheckedImage:
    manifest: Descriptor
    config: Descriptor
    layers: tuple[tuple[Descriptor, Digest], ...]


def unpack(store: ContentStore, root: Descriptor, directory: Path, *, platform: Platform) -> Unpacked:
    """Create `directory` with the root file system of an image. In an index, the image that matches `platform` best is used.

    `directory` must be missing or empty. The directory appears at the end: complete, durable, and with every digest and diff ID
    verified. Before the end, and after an error, nothing appears. As root, files get the owners and devices of the image; as
    another user, they belong to the user.

    Raises:
        InvalidInput: `directory` has files or is a mount point, or the image has an impossible entry.
        NotFound: the index has no image for the platform, or the store lacks content of the image.
        Unsupported: not an image, or a layer of a type that cannot be unpacked.
        Corrupt: content does not match its digest, or a layer its diff ID, or a layer is not a complete tar archive.
        StoreFull, Denied, Unavailable: the disk.
    """
    image = _check_image(store, _select_manifest(store, root, platform))
    with (
        translate_errors(f"directory {directory}"),
        _publish_directory(directory) as unfinished,
        open_directory(unfinished) as handle,
    ):
        rootfs = Rootfs(handle)
        for layer, diff_id in image.layers:
            with layers.open_layer(store, layer, diff_id=diff_id) as stream:
                rootfs.apply(stream)
        rootfs.finish()
        sync(handle)
    return Unpacked(
        manifest=image.manifest,
        config=image.config.digest,
        layers=len(image.layers),
        chain_id=config.chain_id([diff_id for _, diff_id in image.layers]),
        directory=directory,
    )


def _select_manifest(store: ContentStore, root: Descriptor, platform: Platform) -> Descriptor:
    """Return `root`, or the first manifest below an index that matches the platform best.

    Several manifests may match equally, for example several versions of Windows.
    """
    if root.kind != "index":
        return root
    candidates = [_with_platform(store, descriptor) for descriptor in _manifests(store, root, platform)]
    if chosen := best((platform,), [candidate for candidate in candidates if candidate.platform]):
        return chosen[0]
    offered = ", ".join(sorted({str(candidate.platform) for candidate in candidates if candidate.platform})) or "no image"
    raise NotFound(f"no image for {platform}; the index has {offered}", subject=root)


def _manifests(store: ContentStore, root: Descriptor, platform: Platform) -> Iterator[Descriptor]:
    """Yield the distinct manifests in an index and in nested indexes, in order.

    Attestation manifests and nested indexes for other platforms are left out.
    """

    def children(index: Descriptor) -> Sequence[Descriptor]:
        is_wanted = index.platform is None or platform.rank(index.platform) is not None
        return _children(store, index) if index.kind == "index" and is_wanted else ()

    for descriptor in walk_tree(children, root):
        if descriptor.kind == "manifest" and descriptor.platform != _NO_PLATFORM:
            yield descriptor


def _with_platform(store: ContentStore, manifest: Descriptor) -> Descriptor:
    """Return the descriptor with its platform, from the config if the index does not have the platform. Artifacts have none."""
    if manifest.platform is not None:
        return manifest
    configured = _children(store, manifest)[0]
    if configured.kind != "config":
        return manifest
    return replace(manifest, platform=config.platform(_document(store, configured), at=str(configured)))


def _check_image(store: ContentStore, manifest: Descriptor) -> _CheckedImage:
    """Read and check the manifest and config of an image, before any layer is read."""
    if manifest.kind != "manifest":
        raise Unsupported(f"expected an image, got the type {quote_text(manifest.media_type)}", subject=manifest)
    configured, *listed = _children(store, manifest)
    if configured.kind != "config":
        raise Unsupported(f"expected an image, got an artifact with a config of type {configured.media_type}", subject=manifest)
    for layer in listed:
        layers.require_unpackable(store, layer)
    diff_ids = config.diff_ids(_document(store, configured), at=str(configured))
    if len(diff_ids) != len(listed):
        raise Corrupt(
            f"expected a diff ID for each of {len(listed)} layers of {manifest}, got {len(diff_ids)}", subject=configured
        )
    return _CheckedImage(manifest=manifest, config=configured, layers=tuple(zip(listed, diff_ids, strict=True)))


def _children(store: ContentStore, descriptor: Descriptor) -> tuple[Descriptor, ...]:
    return documents.children(_document(store, descriptor), descriptor.media_type, at=str(descriptor))


def _document(store: ContentStore, descriptor: Descriptor) -> bytes:
    """Return the verified bytes of a manifest or config."""
    if descriptor.size > documents.MAX_BYTES:
        raise InvalidInput(f"expected at most {documents.MAX_BYTES} bytes, got {descriptor.size}", subject=descriptor)
    if not store.holds(descriptor):
        raise NotFound(f"not in {store.url}; fetch the image first", subject=descriptor)
    return store.manifest(descriptor)


@contextmanager
def _publish_directory(directory: Path) -> Iterator[Path]:
    """Yield an empty directory that is renamed to `directory` at the end of the block, or removed after an error.

    The block must make the content durable. This function makes the rename durable.
    """
    target = Path(os.path.realpath(directory))
    unfinished = target.parent / f".unpack-{uuid.uuid4().hex}"
    _check_unused(target)
    try:
        unfinished.mkdir(mode=0o700)
        yield unfinished
        _move(unfinished, target)
    except BaseException:
        _discard(unfinished)
        raise
    with open_directory(target.parent) as parent:  # if the sync fails, the published directory is complete nevertheless
        os.fsync(parent)


def _check_unused(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as children:
        if next(children, None) is not None:
            raise _in_use(directory)
    if directory.is_mount():  # otherwise rename(2) would fail at the end, after all work
        raise _mount_point(directory)


def _move(unfinished: Path, target: Path) -> None:
    try:
        unfinished.rename(target)
    except OSError as exc:
        if exc.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process has created files meanwhile
            raise _in_use(target) from exc
        if exc.errno == errno.EBUSY:  # a bind mount of a directory on the same disk, which is_mount() does not detect
            raise _mount_point(target) from exc
        raise


def _discard(unfinished: Path) -> None:
    try:
        with open_directory(unfinished.parent) as parent, contextlib.suppress(FileNotFoundError):
            remove(os.fsencode(unfinished.name), within=parent)
    except OSError as exc:  # do not hide the first error
        _log.warning("could not remove the unfinished directory %s: %s", unfinished, exc)


def _mount_point(directory: Path) -> InvalidInput:
    return InvalidInput(
        f"directory {directory}: a mount point, which cannot be replaced atomically; give a new directory below it"
    )


def _in_use(directory: Path) -> InvalidInput:
    return InvalidInput(f"directory {directory}: expected a new or empty directory to unpack into, got a directory with files")
