"""The commands resolve, tags, catalog and fetch-object: single requests to remotes."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from prefect_dist.cli import inputs, output
from prefect_dist.cli.inputs import BadInput
from prefect_dist.cli.login import open_remotes
from prefect_dist.cli.options import Image, LoginOptions, NetworkOptions, Shared
from prefect_dist.ocispec import Descriptor, Digest, Hasher, Reference
from prefect_dist.ocispec.errors import Corrupt, Unavailable
from prefect_dist.ocispec.mediatypes import OCTET_STREAM

if TYPE_CHECKING:
    from prefect_dist.remotes import Remotes

_HINTS = ("mediatype", "size")


def _filter(objects: str) -> Parameter:
    return Parameter(name="--filter", help=f"List only the {objects} that this regular expression matches completely.")


def resolve(
    reference: Image,
    /,
    *,
    network: NetworkOptions = NetworkOptions(),
    login: LoginOptions = LoginOptions(),
    context: Shared,
) -> int:
    """Print the descriptor of an image."""
    image = inputs.parse_reference(reference)
    with open_remotes(context, network, login, image.host) as remotes:
        found = remotes.resolve(image)
    if context.output == "json":
        output.print_json({"name": found.name, "descriptor": found.descriptor.to_json()})
    else:
        root = found.descriptor
        row = (found.name, str(root.digest), root.media_type, str(root.size))
        output.print_columns(("NAME", "DIGEST", "MEDIA TYPE", "SIZE"), [row])
    return 0


def catalog(
    registry: Annotated[
        str, Parameter(name="HOST", help="A registry, such as registry.example:5000, or a locator of another remote.")
    ],
    /,
    *,
    filter: Annotated[str | None, _filter("repositories")] = None,  # noqa: A002 - the name of the option
    network: NetworkOptions = NetworkOptions(),
    login: LoginOptions = LoginOptions(),
    context: Shared,
) -> int:
    """Print the repositories of a registry or another remote."""
    host, chosen = inputs.parse_catalog(registry), inputs.compile_pattern(filter or ".*")
    with open_remotes(context, network, login, host) as remotes:
        found = (name for name in remotes.list_repositories(host) if chosen.fullmatch(name))
        if context.output == "json":
            output.print_json({"registry": host, "repositories": list(found)})
        else:
            output.print_lines(found)
    return 0


def tags(
    repository: Annotated[str, Parameter(name="REPO", help="A repository, such as redis.")],
    /,
    *,
    filter: Annotated[str | None, _filter("tags")] = None,  # noqa: A002 - the name of the option
    network: NetworkOptions = NetworkOptions(),
    login: LoginOptions = LoginOptions(),
    context: Shared,
) -> int:
    """Print the tags of a repository."""
    place, chosen = inputs.parse_repository(repository), inputs.compile_pattern(filter or ".*")
    with open_remotes(context, network, login, place.host) as remotes:
        found = (tag for tag in remotes.open_source(place).tags() if chosen.fullmatch(tag))
        if context.output == "json":
            output.print_json({"name": str(place), "tags": list(found)})
        else:
            output.print_lines(found)
    return 0


def fetch_object(
    locator: Annotated[str, Parameter(name="REF", help="An image, or the repository of OBJECT.")],
    object_and_hints: Annotated[
        list[str] | None,
        Parameter(name="OBJECT HINT", help="A tag or digest, and hints that help to find it: mediatype:… and size:…"),
    ] = None,
    /,
    *,
    network: NetworkOptions = NetworkOptions(),
    login: LoginOptions = LoginOptions(),
    context: Shared,
) -> int:
    """Write an object to standard output.

    Raises:
        Corrupt: the written bytes do not have the expected digest.
    """
    reference, hints = _parse_object(locator, object_and_hints or [])
    with open_remotes(context, network, login, reference.host) as remotes:
        descriptor = _descriptor_from_hints(reference, hints) or _look_up(remotes, reference, hints.get("mediatype"))
        hasher = Hasher(descriptor.digest.algorithm)
        for piece in remotes.open_source(reference).fetch(descriptor):
            hasher.update(piece)
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    if hasher.digest() != descriptor.digest:
        raise Corrupt(f"{reference}: expected {descriptor.digest}, got {hasher.digest()}; discard the output")
    return 0


def _parse_object(locator: str, rest: Sequence[str]) -> tuple[Reference, dict[str, str]]:
    """Return the reference and the hints. The object is the argument in `rest` that is not a hint."""
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
        return inputs.parse_reference(locator), hints
    mark = "@" if Digest.is_valid(objects[0]) else ":"
    return inputs.parse_reference(f"{locator}{mark}{objects[0]}"), hints


def _look_up(remotes: "Remotes", reference: Reference, media_type: str | None) -> Descriptor:
    try:
        return remotes.resolve(reference, media_type=media_type).descriptor
    except Unavailable:
        if media_type is not None or reference.digest is None:
            raise
        # The CNCF registry 2.8 answers 500 if the digest of a blob is looked up among the manifests. A look-up among the blobs
        # finds no media type, which this command does not need.
        return remotes.resolve(reference, media_type=OCTET_STREAM).descriptor


def _descriptor_from_hints(reference: Reference, hints: dict[str, str]) -> Descriptor | None:
    """Return the descriptor that a digest and both hints define, or None. This saves a look-up."""
    pinned = reference.pinned_digest()
    if pinned is None or len(hints) < len(_HINTS):
        return None
    return Descriptor(media_type=hints["mediatype"], digest=pinned, size=int(hints["size"]))
