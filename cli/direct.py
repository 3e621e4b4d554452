"""Runs of the option `--direct`: in threads of the command, without Prefect."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from prefect_dist.cli.finished import Finished
from prefect_dist.cli.inputs import BadInput
from prefect_dist.cli.signals import note_stop
from prefect_dist.mirror.direct import run_directly
from prefect_dist.mirror.resources import BlockUnreadable, NetworkParameters, NoBlocks, RunResources
from prefect_dist.mirror.run_spec import RunSpec
from prefect_dist.transfer.events import Notify

_MODULES = {"mirror": "configured", "seed": "configured", "push": "copying", "copy": "copying"}


def make_run(flow: str, parameters: Mapping[str, Any]) -> RunSpec:
    """Return the run for the parameters of the flow named `flow`.

    Raises:
        BadInput: a parameter or the configuration names a Prefect block.
        DistError: the run for the parameters cannot be made.
    """
    given = dict(parameters)
    resources = RunResources(
        store=given.pop("store", None),
        store_options=given.pop("store_options"),
        network=NetworkParameters(**given.pop("network", {})),
        blocks=NoBlocks(),
    )
    module = import_module(f"prefect_dist.mirror.{_MODULES.get(flow, flow)}")
    make: Callable[..., RunSpec] = getattr(module, f"make_{flow}_run")
    try:
        return make(resources, **given)
    except BlockUnreadable as exc:
        raise BadInput(str(exc)) from exc


def run_direct(spec: RunSpec, notify: Notify) -> Finished:
    """Carry out a run, and return the result.

    Raises:
        DistError: the run could not begin.
    """
    with note_stop(notify):
        return Finished(report=run_directly(spec, notify))
