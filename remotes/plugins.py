"""Plug-ins: opens the remotes of installed packages, and checks the results of their methods.

A plug-in is foreign code with the rights of the user. Every unexpected error and every wrong result becomes an error that names
the plug-in and its package, so that a broken plug-in breaks only the references with its scheme. KeyboardInterrupt and
cancellation pass.
"""

import logging
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import TypeVar

from prefect_dist.ocispec import Descriptor, Digest, Reference, manifest
from prefect_dist.ocispec.errors import Corrupt, DistError, InvalidInput, Unavailable, Unsupported
from prefect_dist.ocispec.reference import is_tag
from prefect_dist.ocispec.schemes import describe_plugin, find_plugins
from prefect_dist.remotes.credentials import Credentials
from prefect_dist.remotes.errors import one_line
from prefect_dist.remotes.remote import Ability, Observer, Read, Remote, Source, Target, make_unsupported

T = TypeVar("T")
_log = logging.getLogger(__name__)
_END = object()


class PluginError(DistError):
    """A plug-in failed in a way that its interface does not allow: update the plug-in, or report the error to its authors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginContext:
    """The resources of a plug-in.

    Attributes:
        scheme: the scheme of the plug-in.
        open_source: opens the source of a reference with any scheme. The source uses the credentials of its own remote, which
            the plug-in does not get.
        find_credentials: returns the credentials for a locator with the scheme of the plug-in, None without credentials.
    """

    scheme: str
    open_source: Callable[[Reference], Source]
    find_credentials: Callable[[str], Credentials | None]


def open_plugin(scheme: str, context: PluginContext) -> Remote:
    """Return the remote of a plug-in.

    Raises:
        InvalidInput: no plug-in serves the scheme.
        PluginError: several plug-ins serve the scheme, or the plug-in cannot be loaded.
    """
    points = find_plugins().get(scheme, ())
    if not points:
        raise InvalidInput(f"no remote serves the scheme {scheme}:; install its plug-in")
    if len(points) > 1:
        names = " and ".join(map(describe_plugin, points))
        raise PluginError(f"several plug-ins serve the scheme {scheme}:, {names}; uninstall all packages but one")
    plugin = Plugin(f"{describe_plugin(points[0])} for the scheme {scheme}")
    made = _make(points[0], context, plugin)
    return GuardedRemote(plugin, made)


def _make(point: EntryPoint, context: PluginContext, plugin: "Plugin") -> Remote:
    try:
        made = point.load()(context)
    except DistError:
        raise
    except (Exception, SystemExit) as exc:
        raise PluginError(f"cannot be loaded: {_describe(exc)}; update or uninstall the package", subject=plugin.name) from exc
    if not isinstance(made, Remote):
        raise PluginError(f"expected a prefect_dist.remotes.Remote, got {_describe_type(made)}", subject=plugin.name)
    return made


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plug-in by its name in messages. After `aborted` is set, each call fails."""

    name: str
    aborted: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def convert_errors(self, what: str) -> Iterator[None]:
        """Raise unexpected errors of the plug-in in this block as `PluginError`. `what` names the called method."""
        self._check(what)
        try:
            yield
        except DistError:
            raise
        except Exception as exc:
            self._check(what)  # an error of an aborted transfer is expected
            raise PluginError(f"{what} failed: {_describe(exc)}", subject=self.name) from exc

    def call(self, what: str, function: Callable[[], T], kind: type[T] | tuple[type, ...]) -> T:
        """Return the result of a function of the plug-in, which has to be an instance of `kind`."""
        with self.convert_errors(what):
            result = function()
        return self._expect(what, result, kind)

    def iterate(self, what: str, function: Callable[[], Iterable[T]], kind: type[T]) -> Iterator[T]:
        """Yield the items of a function of the plug-in, which have to be instances of `kind`."""
        with self.convert_errors(what):
            items = iter(function())
        while True:
            with self.convert_errors(what):
                item = next(items, _END)
            if item is _END:
                return
            yield self._expect(what, item, kind)

    def require(self, what: str, *, is_met: bool, expected: str) -> None:
        """Check a result of the plug-in."""
        if not is_met:
            raise PluginError(f"{what}: expected {expected}", subject=self.name)

    def _expect(self, what: str, result: object, kind: type[T] | tuple[type, ...]) -> T:
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join("None" if one is type(None) else one.__name__ for one in kinds)
        self.require(what, is_met=isinstance(result, kinds), expected=f"{names}, got {_describe_type(result)}")
        return result  # type: ignore[return-value]

    def _check(self, what: str) -> None:
        if self.aborted.is_set():
            raise Unavailable(f"{what} was aborted", subject=self.name)


class GuardedRemote(Remote):
    """The remote of a plug-in, with checked results. Thread-safe."""

    def __init__(self, plugin: Plugin, remote: Remote) -> None:
        self._plugin, self._remote = plugin, remote
        self.abilities = remote.abilities

    def open_source(self, reference: Reference) -> Source:
        """Return the source for the place of a reference."""
        source = self._plugin.call("open_source", lambda: self._remote.open_source(reference), Source)
        return GuardedSource(self._plugin, source, reference, self.abilities)

    def open_origin(self, reference: Reference) -> Source:
        """Return the source for the place of a reference itself."""
        source = self._plugin.call("open_origin", lambda: self._remote.open_origin(reference), Source)
        return GuardedSource(self._plugin, source, reference, self.abilities)

    def open_target(self, reference: Reference) -> Target:
        """Return the target for the place of a reference.

        Raises:
            Unsupported: the remote is read-only.
        """
        if "push" not in self.abilities:
            raise make_unsupported("push", reference)
        return GuardedTarget(
            self._plugin, self._plugin.call("open_target", lambda: self._remote.open_target(reference), Target)
        )

    def list_repositories(self, host: str) -> Iterator[str]:
        """Yield the repositories below a locator, each once.

        Raises:
            Unsupported: the remote has no such list.
        """
        if "repositories" not in self.abilities:
            raise make_unsupported("repositories", Reference(host))
        return self._plugin.iterate("list_repositories", lambda: self._remote.list_repositories(host), str)

    def abort(self) -> None:
        """Abort the transfers in flight and refuse later ones. An error of the plug-in is only logged."""
        self._plugin.aborted.set()  # first, so that errors of aborted transfers do not look like errors of the plug-in
        self._log_errors("abort", self._remote.abort)

    def close(self) -> None:
        """Release the resources of the remote. An error of the plug-in is only logged."""
        self._log_errors("close", self._remote.close)

    def _log_errors(self, what: str, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception as exc:  # noqa: BLE001 - the other remotes have to be aborted and closed, too
            _log.warning("%s: %s failed: %s", self._plugin.name, what, _describe(exc))


class GuardedSource(Source):
    """A source of a plug-in, with checked results. Thread-safe."""

    def __init__(self, plugin: Plugin, source: Source, reference: Reference, abilities: Container[Ability]) -> None:
        self._plugin, self._source, self._abilities = plugin, source, abilities
        self._reference = reference

    def resolve(self, reference: Reference, *, media_type: str | None = None) -> Descriptor:
        """Return the descriptor of a tag or digest. A digest in the reference is compared with the result."""
        found = self._plugin.call("resolve", lambda: self._source.resolve(reference, media_type=media_type), Descriptor)
        pinned = reference.pinned_digest()
        is_met = pinned is None or found.digest == pinned
        self._plugin.require("resolve", is_met=is_met, expected=f"{pinned}, the digest in the reference, got {found.digest}")
        if found.is_manifest and found.size > manifest.MAX_BYTES:
            raise Unsupported(f"expected a manifest of at most {manifest.MAX_BYTES} bytes, got {found.size}", subject=reference)
        return found

    def fetch(self, descriptor: Descriptor, *, offset: int = 0) -> Iterator[bytes]:
        """Yield the bytes of `descriptor` from `offset` to its size, unverified.

        Raises:
            Corrupt: the plug-in yields more or fewer bytes.
        """
        end = offset
        for piece in self._plugin.iterate("fetch", lambda: self._source.fetch(descriptor, offset=offset), bytes):
            end += len(piece)
            if end > descriptor.size:
                raise Corrupt(f"expected {descriptor.size} bytes, {self._plugin.name} sent more", subject=descriptor)
            yield piece
        if end < descriptor.size:
            raise Corrupt(f"expected {descriptor.size} bytes, {self._plugin.name} sent {end}", subject=descriptor)

    def download(self, reference: Reference) -> Descriptor:
        """Return the descriptor of a manifest, with the content in `data`, unverified."""
        return self._plugin.call("download", lambda: self._source.download(reference), Descriptor)

    def distrust(self, descriptor: Descriptor) -> None:
        """Note that the received bytes were wrong."""
        self._plugin.call("distrust", lambda: self._source.distrust(descriptor), (object,))

    def exists(self) -> bool:
        """Return False if the place is known not to exist."""
        return self._plugin.call("exists", self._source.exists, bool)

    @property
    def has_referrers_api(self) -> bool:
        """True if the place lists the referrers of manifests that no fallback tag lists."""
        return "referrers" in self._abilities and self._plugin.call(
            "has_referrers_api", lambda: self._source.has_referrers_api, bool
        )

    def tags(self) -> Iterator[str]:
        """Yield the tags, each once."""
        self._require("tags")
        for tag in self._plugin.iterate("tags", self._source.tags, str):
            self._plugin.require("tags", is_met=is_tag(tag), expected=f"a tag, got {tag[:140]!r}")
            yield tag

    def referrers(self, descriptor: Descriptor, *, artifact_type: str | None = None) -> Iterator[Descriptor]:
        """Yield the referrers of `descriptor`, each once, with artifact type and annotations."""
        self._require("referrers")
        yield from self._plugin.iterate(
            "referrers", lambda: self._source.referrers(descriptor, artifact_type=artifact_type), Descriptor
        )

    def signatures(self, descriptor: Descriptor, *, tags: Container[str] | None = None) -> Iterator[tuple[str, Descriptor]]:
        """Yield cosign's existing digest tags of `descriptor` with their descriptors; only from `tags`, if given."""
        self._require("referrers")
        for item in self._plugin.iterate("signatures", lambda: self._source.signatures(descriptor, tags=tags), tuple):
            match item:
                case (str(), Descriptor()):
                    yield item
                case _:
                    self._plugin.require("signatures", is_met=False, expected="pairs of a tag and a Descriptor")

    def _require(self, ability: Ability) -> None:
        if ability not in self._abilities:
            raise make_unsupported(ability, self._reference)


class GuardedTarget(Target):
    """A target of a plug-in, with checked results. Thread-safe."""

    def __init__(self, plugin: Plugin, target: Target) -> None:
        self._plugin, self._target = plugin, target

    def has(self, descriptor: Descriptor, *, tag: str | None = None) -> bool:
        """Return True if the place has the manifest or blob; with `tag`, if the tag resolves to the manifest."""
        return self._plugin.call("has", lambda: self._target.has(descriptor, tag=tag), bool)

    def check_image(self, content: Sequence[Descriptor]) -> None:
        """Check that the place accepts an image with this content."""
        self._plugin.call("check_image", lambda: self._target.check_image(content), (object,))

    def mount(self, blob: Descriptor, *, source: str | None = None) -> bool:
        """Let the place take a blob from another repository. Return False if it did not."""
        return self._plugin.call("mount", lambda: self._target.mount(blob, source=source), bool)

    def upload(self, blob: Descriptor, read: Read, *, observer: Observer) -> None:
        """Write a blob."""
        self._plugin.call("upload", lambda: self._target.upload(blob, read, observer=observer), (object,))

    def put(self, raw: bytes, descriptor: Descriptor, *, tag: str | None = None) -> Digest | None:
        """Write a manifest under its digest or under `tag`."""
        return self._plugin.call("put", lambda: self._target.put(raw, descriptor, tag=tag), (Digest, type(None)))

    def list_referrer(self, subject: Digest, referrer: Descriptor) -> None:
        """List `referrer` under the fallback tag of the referrers of `subject`."""
        self._plugin.call("list_referrer", lambda: self._target.list_referrer(subject, referrer), (object,))

    def delete_tag(self, tag: str) -> bool:
        """Delete only a tag. Return False if the place cannot delete single tags."""
        return self._plugin.call("delete_tag", lambda: self._target.delete_tag(tag), bool)

    def delete(self, digest: Digest) -> None:
        """Delete a manifest and every tag that resolves to it."""
        self._plugin.call("delete", lambda: self._target.delete(digest), (object,))


def _describe(exc: BaseException) -> str:
    text = one_line(str(exc))
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def _describe_type(value: object) -> str:
    return "None" if value is None else type(value).__name__
