"""The commands that bring content to registries: push and push-object."""

from typing import TYPE_CHECKING, Any

from prefect_dist.cli import inputs, runs, tables
from prefect_dist.cli.context import Context
from prefect_dist.cli.errors import BadInput
from prefect_dist.cli.login import WAY, given
from prefect_dist.cli.names import find_record
from prefect_dist.cli.options import LoginOptions, NetworkOptions, RunNetworkOptions
from prefect_dist.cli.remote import open_registries
from prefect_dist.ocispec import Descriptor
from prefect_dist.ocispec.mediatypes import OCI_MANIFEST, OCTET_STREAM
from prefect_dist.remotes.headers import MEDIA_TYPE
from prefect_dist.transfer import content as transfer
from prefect_dist.transfer.events import ignore_event
from prefect_dist.transfer.session import use_credentials

if TYPE_CHECKING:
    from prefect_dist.mirror.push import PushReport


def push(context: Context, name: str, target: str, *, network: RunNetworkOptions, login: LoginOptions, **options: int) -> int:
    """Push an image of the store; 1 if not all of it got there. `options` are parameters of the flow."""
    reference = inputs.reference(target)
    parameters = {
        "name": find_record(inputs.store(context), name).name,
        "target": str(reference),
        **runs.common(context, network),
        **options,
    }

    def load() -> Any:
        from prefect_dist.flows.push import push

        return push

    with use_credentials(given(login, [reference.host]), way=WAY):
        return runs.run(context, load, parameters, _show, doing="uploading")


def push_object(
    context: Context, target: str, digest: str, media_type: str | None, *, network: NetworkOptions, login: LoginOptions
) -> int:
    """Push one blob or manifest of the store, without Prefect and whatever its children are."""
    reference, store = inputs.reference(target), inputs.store(context)
    tag = reference.tag if any(mark in target.rpartition("/")[2] for mark in ":@") else None  # no latest but a typed one
    info = store.info(inputs.digest(digest))
    media_type = (media_type or OCTET_STREAM).removeprefix("mediatype:")  # as fetch-object's hints are written
    if not MEDIA_TYPE.fullmatch(media_type):
        raise BadInput(f"type {media_type!r}: expected type/subtype, such as {OCI_MANIFEST}")
    if reference.digest is not None and reference.digest != str(info.digest):
        raise BadInput(f"{target}: expected the digest of what is pushed, {info.digest}")
    descriptor = Descriptor(media_type=media_type, digest=info.digest, size=info.size)
    if tag is not None and not descriptor.is_manifest:
        raise BadInput(f"{target}: only a manifest can have a tag; name its media type, or leave out the tag")
    with open_registries(context, network, login, reference.host) as registries:
        receipt = transfer.push(store, registries.pusher(reference), descriptor, tag=tag, notify=ignore_event)
    if context.output == "json":
        tables.json({"target": str(reference), "descriptor": descriptor.to_json(), "status": receipt.status})
    else:
        tables.lines([f"{receipt.status} {descriptor.digest} {descriptor.media_type}"])
    return 0


def _show(report: "PushReport") -> None:
    (row,) = report.table()
    heads = ("target", "outcome", "pushed", "mounted", "existed", "failed", "bytes")
    cells = (*(str(row[head]) for head in heads), str(report.root.digest))
    tables.columns((*map(str.upper, heads), "DIGEST"), [cells])
