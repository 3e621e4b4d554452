"""The commands that bring images in: fetch and pull."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_dist.cli import inputs, runs, tables
from prefect_dist.cli.context import Context
from prefect_dist.cli.login import WAY, given
from prefect_dist.cli.names import find_record
from prefect_dist.cli.options import LoginOptions, RunNetworkOptions
from prefect_dist.ocispec.units import size
from prefect_dist.transfer.session import use_credentials

if TYPE_CHECKING:
    from prefect_dist.mirror.pull import PullReport
    from prefect_dist.mirror.run_report import RunReport
    from prefect_dist.transfer.image_report import ImageReport


def fetch(
    context: Context,
    references: Sequence[str],
    platforms: Sequence[str],
    *,
    network: RunNetworkOptions,
    login: LoginOptions,
    **options: int,
) -> int:
    """Fetch images; 1 if any is not complete. `options` are parameters of the flow."""
    images = [inputs.reference(text) for text in references]
    parameters = {
        "references": list(map(str, images)),
        "platforms": [str(platform) for platform in inputs.platforms(platforms) or ()] or "all",
        **runs.common(context, network),
        **options,
    }
    inputs.writable(context)  # refused before anything is started

    def load() -> Any:
        from prefect_dist.flows.fetch import fetch

        return fetch

    with use_credentials(given(login, [image.host for image in images]), way=WAY):
        return runs.run(context, load, parameters, _show)


def pull(
    context: Context,
    reference: str,
    directory: str,
    platform: str | None,
    *,
    network: RunNetworkOptions,
    login: LoginOptions,
    **options: int,
) -> int:
    """Fetch an image and unpack it; 1 if either fails. `options` are parameters of the flow."""
    image = inputs.reference(reference)
    parameters = {
        "reference": str(image),
        "directory": inputs.unused_directory(directory),
        "platform": None if platform is None else str(inputs.platform(platform)),
        **runs.common(context, network),
        **options,
    }
    inputs.writable(context)

    def load() -> Any:
        from prefect_dist.flows.pull import pull

        return pull

    with use_credentials(given(login, [image.host]), way=WAY):
        return runs.run(context, load, parameters, _show_pull)


def unpack(context: Context, name: str, directory: str, platform: str | None) -> int:
    """Unpack an image of the store, without Prefect."""
    from prefect_dist.storage.unpack import unpack

    store, target = inputs.store(context), inputs.unused_directory(directory)
    root = find_record(store, name).descriptor
    done = unpack(store, root, Path(target), platform=inputs.platform(platform))
    if context.output == "json":
        chain_id = done.chain_id and str(done.chain_id)
        tables.json({"manifest": str(done.manifest.digest), "layers": done.layers, "chain_id": chain_id, "directory": target})
    else:
        tables.lines([str(done.chain_id)])
    return 0


def _show(report: "RunReport") -> None:
    heads = ("IMAGE", "STATUS", "FETCHED", "EXISTED", "FAILED", "BYTES", "DIGEST")
    tables.columns(heads, [_row(image) for image in report.images])


def _show_pull(report: "PullReport") -> None:
    _show(report.fetched)


def _row(image: "ImageReport") -> tuple[str, ...]:
    counts = (str(image.fetched), str(image.existed), str(image.failed))
    return image.name, image.status, *counts, size(image.transferred), str(image.root.digest) if image.root else "-"
