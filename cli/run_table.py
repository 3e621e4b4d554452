"""The table of the runs that commands start: for each name, the function that makes the run, and the flow."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from prefect_dist.mirror.report import FlowName
from prefect_dist.mirror.run_spec import RunSpec


@dataclass(frozen=True, slots=True)
class RunKind:
    """A kind of run, as `module:function` below `prefect_dist`. A command imports only the way that it takes.

    `maker` returns the specification of the run for the resources and the parameters. `flow` is the Prefect flow.
    """

    maker: str
    flow: str

    def load_maker(self) -> Callable[..., RunSpec]:
        """Import and return the maker."""
        return _load(self.maker)

    def load_flow(self) -> Callable[..., Any]:
        """Import Prefect and the flow, and return the flow."""
        return _load(self.flow)


def _load(name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = resolve_name(f"prefect_dist.{name}")
    return found


RUNS: Mapping[FlowName, RunKind] = {
    "fetch": RunKind("mirror.fetch:make_fetch_run", "flows.fetch:fetch"),
    "pull": RunKind("mirror.pull:make_pull_run", "flows.pull:pull"),
    "push": RunKind("mirror.copying:make_push_run", "flows.push:push"),
    "copy": RunKind("mirror.copying:make_copy_run", "flows.copy:copy"),
    "mirror": RunKind("mirror.configured:make_mirror_run", "flows.mirror:mirror"),
    "seed": RunKind("mirror.configured:make_seed_run", "flows.seed:seed"),
    "check": RunKind("mirror.check:make_check_run", "flows.check:check"),
    "verify": RunKind("mirror.verify:make_verify_run", "flows.verify:verify"),
    "gc": RunKind("mirror.gc:make_gc_run", "flows.gc:gc"),
}
