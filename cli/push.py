"""The commands push and push-object: content from the content store to registries."""

from typing import Annotated

from cyclopts import Parameter

from prefect_dist.cli import inputs, output
from prefect_dist.cli.inputs import BadInput
from prefect_dist.cli.login import open_remotes, use_login
from prefect_dist.cli.names import find_record
from prefect_dist.cli.options import (
    Concurrency,
    Direct,
    LoginOptions,
    NetworkOptions,
    Quiet,
    Referrers,
    Retries,
    RunNetworkOptions,
    Shared,
    StoredName,
    option,
)
from prefect_dist.ocispec import Descriptor
from prefect_dist.ocispec.mediatypes import OCI_MANIFEST, OCTET_STREAM
from prefect_dist.ocispec.reference import has_object


def push(
    name: StoredName,
    target: Annotated[str, Parameter(name="REF", help="The target, such as registry.example/team/app:v1 or oci:DIR:TAG.")],
    /,
    *,
    platform: Annotated[
        str | None, Parameter(help="Push the image for this platform, such as linux/amd64, instead of the index.")
    ] = None,
    sparse: Annotated[
        bool, option("Push the index unchanged although the content store has only some of its platforms.")
    ] = False,
    referrers: Referrers = False,
    concurrency: Concurrency = 8,
    retries: Retries = 3,
    network: RunNetworkOptions = RunNetworkOptions(),
    login: LoginOptions = LoginOptions(),
    direct: Direct = False,
    quiet: Quiet = False,
    context: Shared,
) -> int:
    """Run the flow `push`, and return the exit code."""
    from prefect_dist.cli import runs

    reference = inputs.parse_reference(target)
    if platform is not None and sparse:
        raise BadInput("expected either --platform or --sparse, got both")
    parameters = {
        "name": find_record(inputs.open_store(context), name).name,
        "target": str(reference),
        "platform": None if platform is None else str(inputs.parse_platform(platform)),
        "sparse": sparse,
        "referrers": referrers,
        "concurrency": concurrency,
        "retries": retries,
        **runs.common_parameters(context, network),
    }
    with use_login(login, [reference.host]):
        return runs.run(context, "push", parameters, doing="uploading", quiet=quiet, direct=direct)


def push_object(
    target: Annotated[str, Parameter(name="REF", help="The target: a repository, with a tag only for a manifest.")],
    digest: Annotated[str, Parameter(name="DIGEST", help="The digest of a blob in the content store.")],
    media_type: Annotated[
        str | None, Parameter(name="TYPE", help="The media type of the blob; required for a manifest.")
    ] = None,
    /,
    *,
    network: NetworkOptions = NetworkOptions(),
    login: LoginOptions = LoginOptions(),
    context: Shared,
) -> int:
    """Push a blob or manifest without children."""
    from prefect_dist.remotes.headers import MEDIA_TYPE
    from prefect_dist.transfer import content as transfer
    from prefect_dist.transfer.events import ignore_event

    reference, store = inputs.parse_reference(target), inputs.open_store(context)
    tag = reference.tag if has_object(target) else None  # ignore an implied `latest`
    info = store.info(inputs.parse_digest(digest))
    media_type = (media_type or OCTET_STREAM).removeprefix("mediatype:")  # the form of fetch-object's hints is accepted, too
    if not MEDIA_TYPE.fullmatch(media_type):
        raise BadInput(f"type {media_type!r}: expected type/subtype, such as {OCI_MANIFEST}")
    if reference.digest is not None and reference.digest != str(info.digest):
        raise BadInput(f"{target}: expected the digest of the pushed object, {info.digest}")
    descriptor = Descriptor(media_type=media_type, digest=info.digest, size=info.size)
    if tag is not None and not descriptor.is_manifest:
        raise BadInput(f"{target}: only a manifest can have a tag; give its media type as TYPE, or leave out the tag")
    with open_remotes(context, network, login, reference.host) as remotes:
        receipt = transfer.push(store, remotes.open_target(reference), descriptor, tag=tag, notify=ignore_event)
    if context.output == "json":
        output.print_json({"target": str(reference), "descriptor": descriptor.to_json(), "status": receipt.status})
    else:
        output.print_lines([f"{receipt.status} {descriptor.digest} {descriptor.media_type}"])
    return 0
