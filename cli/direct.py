"""Runs of the option `--direct`: in threads of the command, without Prefect."""

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from prefect_dist.cli.inputs import BadInput
from prefect_dist.cli.run_table import RUNS
from prefect_dist.cli.signals import note_stop
from prefect_dist.mirror.direct import run_directly
from prefect_dist.mirror.locations import BLOCK
from prefect_dist.mirror.report import FlowName, RunReport
from prefect_dist.mirror.resources import NetworkParameters, RunResources
from prefect_dist.mirror.run_spec import RunSpec
from prefect_dist.transfer.events import Notify

_REMEDY = "only a Prefect run can read blocks; leave out --direct, or"


class NoBlocks:
    """Refuses every Prefect block."""

    def read_store(self, name: str, _options: Mapping[str, Any], /) -> NoReturn:
        """Raise `BadInput`."""
        raise BadInput(f"store {BLOCK}{name}: {_REMEDY} name a path or URL")

    def read_credentials(self, names: Iterable[str], /) -> NoReturn:
        """Raise `BadInput`."""
        raise BadInput(f"credentials block {', '.join(names)}: {_REMEDY} use docker login")

    def read_configuration(self, name: str, /) -> NoReturn:
        """Raise `BadInput`."""
        raise BadInput(f"configuration {BLOCK}{name}: {_REMEDY} name a file")


def make_run(flow: FlowName, parameters: Mapping[str, Any]) -> RunSpec:
    """Return the run for the parameters of a flow.

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
    return RUNS[flow].load_maker()(resources, **given)


def run_direct(spec: RunSpec, notify: Notify) -> RunReport:
    """Carry out a run, and return the report.

    Raises:
        DistError: the run could not begin.
    """
    with note_stop(notify):
        return run_directly(spec, notify)
