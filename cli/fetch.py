"""The commands fetch, pull and unpack: images from registries to the content store and to directories."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from prefect_dist.cli import inputs, output
from prefect_dist.cli.login import use_login
from prefect_dist.cli.options import (
    Concurrency,
    Direct,
    GrainOption,
    Image,
    LoginOptions,
    NewDirectory,
    Platform,
    Platforms,
    Quiet,
    Referrers,
    Retries,
    RunNetworkOptions,
    Shared,
    StoredName,
)


def fetch(
    references: Annotated[list[str], Parameter(name="REF", help="Images, such as redis:7 or ghcr.io/a/b@sha256:…")],
    /,
    *,
    platform: Platforms = None,
    referrers: Referrers = False,
    concurrency: Concurrency = 8,
    retries: Retries = 3,
    network: RunNetworkOptions = RunNetworkOptions(),
    login: LoginOptions = LoginOptions(),
    grain: GrainOption = None,
    direct: Direct = False,
    quiet: Quiet = False,
    context: Shared,
) -> int:
    """Run the flow `fetch`, and return the exit code."""
    from prefect_dist.cli import runs

    images = [inputs.parse_reference(text) for text in references]
    parameters = {
        "references": list(map(str, images)),
        "platforms": [str(platform) for platform in inputs.parse_platforms(platform or ()) or ()] or "all",
        "referrers": referrers,
        "concurrency": concurrency,
        "retries": retries,
        **runs.common_parameters(context, network),
    }
    inputs.require_writable_store(context)
    with use_login(login, [image.host for image in images]):
        return runs.run(context, "fetch", parameters, quiet=quiet, direct=direct, grain=grain)


def pull(
    reference: Image,
    directory: NewDirectory,
    /,
    *,
    platform: Platform = None,
    referrers: Referrers = False,
    concurrency: Concurrency = 8,
    retries: Retries = 3,
    network: RunNetworkOptions = RunNetworkOptions(),
    login: LoginOptions = LoginOptions(),
    direct: Direct = False,
    quiet: Quiet = False,
    context: Shared,
) -> int:
    """Run the flow `pull`, and return the exit code."""
    from prefect_dist.cli import runs

    image = inputs.parse_reference(reference)
    parameters = {
        "reference": str(image),
        "directory": inputs.check_new_directory(directory),
        "platform": None if platform is None else str(inputs.parse_platform(platform)),
        "referrers": referrers,
        "concurrency": concurrency,
        "retries": retries,
        **runs.common_parameters(context, network),
    }
    inputs.require_writable_store(context)
    with use_login(login, [image.host]):
        return runs.run(context, "pull", parameters, quiet=quiet, direct=direct)


def unpack(name: StoredName, directory: NewDirectory, /, *, platform: Platform = None, context: Shared) -> int:
    """Unpack an image of the content store."""
    from prefect_dist.cli.names import find_record
    from prefect_dist.storage.unpack import unpack

    store, target = inputs.open_store(context), inputs.check_new_directory(directory)
    root = find_record(store, name).descriptor
    done = unpack(store, root, Path(target), platform=inputs.parse_platform(platform))
    if context.output == "json":
        chain_id = done.chain_id and str(done.chain_id)
        output.print_json(
            {"manifest": str(done.manifest.digest), "layers": done.layers, "chain_id": chain_id, "directory": target}
        )
    else:
        output.print_lines([str(done.chain_id)])
    return 0
