"""The table of runs: the makers and the flows fit each other, and the names in the table exist."""

import inspect
from typing import get_args

import pytest
from prefect import Flow

from prefect_dist.cli.run_table import RUNS
from prefect_dist.mirror.report import FlowName

_RESOURCES = {"store", "store_options", "network"}
_ONLY_RECORDED = {"grain", "workers", "worker_deployment"}
"""The parameters of a flow without a meaning in a direct run."""


def test_the_table_has_every_run() -> None:
    assert set(RUNS) == set(get_args(FlowName))


@pytest.mark.parametrize("name", RUNS)
def test_the_maker_of_a_run_takes_the_parameters_of_the_flow(name: FlowName) -> None:
    flow, maker = RUNS[name].load_flow(), RUNS[name].load_maker()
    assert isinstance(flow, Flow)

    assert flow.name == name
    assert maker.__name__ == f"make_{name}_run"
    resources, *parameters = inspect.signature(maker).parameters
    assert resources == "resources"
    assert set(parameters) == set(inspect.signature(flow.fn).parameters) - _RESOURCES - _ONLY_RECORDED
