"""Commands on registries, by hand: resolve, tags, catalog, fetch-object."""

import sys
from collections.abc import Sequence

from prefect_dist.cli import inputs, tables
from prefect_dist.cli.context import Context
from prefect_dist.cli.errors import BadInput
from prefect_dist.cli.login import WAY, given
from prefect_dist.cli.options import LoginOptions, NetworkOptions
from prefect_dist.ocispec import Descriptor, Digest, Hasher, Reference
from prefect_dist.ocispec.errors import Corrupt, Unavailable
from prefect_dist.ocispec.mediatypes import OCTET_STREAM
from prefect_dist.remotes import DockerConfig, Registries, RegistrySettings, chain_sources

_HINTS = ("mediatype", "size")


def resolve(context: Context, text: str, network: NetworkOptions, login: LoginOptions) -> int:
    """Show the descriptor of a reference."""
    reference = inputs.reference(text)
    with open_registries(context, network, login, reference.host) as registries:
        found = registries.resolve(reference)
    if context.output == "json":
        tables.json({"name": found.name, "descriptor": found.descriptor.to_json()})
    else:
        of = found.descriptor
        tables.columns(("NAME", "DIGEST", "MEDIA TYPE", "SIZE"), [(found.name, str(of.digest), of.media_type, str(of.size))])
    return 0


def catalog(context: Context, text: str, network: NetworkOptions, login: LoginOptions, *, pattern: str | None) -> int:
    """List the repositories of a registry, or those that match a pattern as a whole."""
    registry, chosen = inputs.registry(text), inputs.pattern(pattern or ".*")
    with open_registries(context, network, login, registry) as registries:
        found = (name for name in registries.repositories(registry) if chosen.fullmatch(name))
        if context.output == "json":
            tables.json({"registry": registry, "repositories": list(found)})
        else:
            tables.lines(found)
    return 0


def tags(context: Context, text: str, network: NetworkOptions, login: LoginOptions, *, pattern: str | None) -> int:
    """List the tags of a repository, or those that match a pattern as a whole."""
    repository, chosen = inputs.repository(text), inputs.pattern(pattern or ".*")
    with open_registries(context, network, login, repository.host) as registries:
        found = (tag for tag in registries.fetcher(repository).tags() if chosen.fullmatch(tag))
        if context.output == "json":
            tables.json({"name": str(repository), "tags": list(found)})
        else:
            tables.lines(found)
    return 0


def fetch_object(context: Context, locator: str, rest: Sequence[str], network: NetworkOptions, login: LoginOptions) -> int:
    """Write one object to standard output. Its digest is known before; a mismatch shows in the exit code."""
    reference, hints = _arguments(locator, rest)
    with open_registries(context, network, login, reference.host) as registries:
        descriptor = _descriptor_from_hints(reference, hints) or _look_up(registries, reference, hints.get("mediatype"))
        hasher = Hasher(descriptor.digest.algorithm)
        for piece in registries.fetcher(reference).fetch(descriptor):
            hasher.update(piece)
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    if hasher.digest() != descriptor.digest:
        raise Corrupt(f"{reference}: expected {descriptor.digest}, got {hasher.digest()}; do not use what was written")
    return 0


def open_registries(context: Context, network: NetworkOptions, login: LoginOptions, host: str) -> Registries:
    """All registries, for a command about this one; to be closed."""
    settings = RegistrySettings(
        hosts=inputs.hosts(network),
        connect_timeout_s=context.connect_timeout_s,
        read_timeout_s=network.read_timeout,
    )
    return Registries(settings, credentials=chain_sources(given(login, [host]), DockerConfig.load().get), ways=(WAY,))


def _arguments(locator: str, rest: Sequence[str]) -> tuple[Reference, dict[str, str]]:
    """The reference and the hints; the object, when given apart, is the one argument that is no hint."""
    hints: dict[str, str] = {}
    objects = []
    for text in rest:
        kind, colon, content = text.partition(":")
        if colon and kind in _HINTS:
            hints[kind] = content
        else:
            objects.append(text)
    if not hints.get("size", "0").isdecimal():
        raise BadInput(f"hint size:{hints['size']}: expected a number of bytes")
    if len(objects) > 1:
        raise BadInput(f"object {objects[1]!r}: expected a hint, mediatype:… or size:…")
    if not objects:
        return inputs.reference(locator), hints
    mark = "@" if Digest.is_valid(objects[0]) else ":"
    return inputs.reference(f"{locator}{mark}{objects[0]}"), hints


def _look_up(registries: Registries, reference: Reference, media_type: str | None) -> Descriptor:
    try:
        return registries.resolve(reference, media_type=media_type).descriptor
    except Unavailable:
        if media_type is not None or reference.digest is None:
            raise
        # The CNCF registry 2.8 answers 500 when a digest that is no manifest is looked for among the manifests. Looking among
        # the blobs loses the type, which does not matter here.
        return registries.resolve(reference, media_type=OCTET_STREAM).descriptor


def _descriptor_from_hints(reference: Reference, hints: dict[str, str]) -> Descriptor | None:
    """The descriptor that a whole digest and both hints make; nothing has to be asked then."""
    pinned = reference.pinned_digest()
    if pinned is None or len(hints) < len(_HINTS):
        return None
    return Descriptor(media_type=hints["mediatype"], digest=pinned, size=int(hints["size"]))
