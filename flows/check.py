"""The flow `check`: checks that the targets of a mirror still have every mirrored image, and repairs targets on request."""

from typing import Annotated

from prefect import get_run_logger
from prefect.runtime import flow_run

from prefect_dist.flows import metrics
from prefect_dist.flows._flow import flow_of
from prefect_dist.flows.exclusive import only_run
from prefect_dist.flows.limits import lease_slots
from prefect_dist.flows.loading import display_name, load_run_config
from prefect_dist.flows.mirror_parts import MirrorParts
from prefect_dist.flows.mirror_run import MirrorEvents
from prefect_dist.flows.parameters import (
    Configuration,
    ConfiguredConcurrency,
    ConfiguredStore,
    Destinations,
    Format,
    Reached,
    Retries,
    StoreOptions,
    label,
)
from prefect_dist.flows.pool import PrefectPool
from prefect_dist.flows.progress_artifact import publish_run_progress
from prefect_dist.mirror.check import check_mirror
from prefect_dist.mirror.lock_config import accept_lock
from prefect_dist.mirror.report import RunReport
from prefect_dist.mirror.skopeo import choose_parser
from prefect_dist.transfer.attempts import RETRIES
from prefect_dist.transfer.session import open_session


def _run_name() -> str:
    given = flow_run.parameters
    return f"check {display_name(given['config'])}{' and repair' if given['repair'] else ''}"


@flow_of("check", run_name=_run_name)
def check(
    config: Configuration,
    store: ConfiguredStore = None,
    *,
    repair: Annotated[bool, label("Repair", "Push missing content again")] = False,
    concurrency: ConfiguredConcurrency = None,
    retries: Retries = RETRIES,
    store_options: StoreOptions = {},  # noqa: B006 - Prefect shows it in the form and copies it
    dialect: Format = "dist",
    to: Destinations = [],  # noqa: B006
    network: Reached = None,
) -> RunReport:
    """Check that each tag of a mirror resolves to the digest in its lock file, with all its content and referrers."""
    wanted, spec = load_run_config(config, store, store_options, network, parse=accept_lock(choose_parser(dialect, to)))
    workers, entries = concurrency or wanted.concurrency, (*wanted.entries, *wanted.seed)
    hosts = {host for entry in entries for host in entry.target_hosts}
    hosts |= {entry.source_host for entry in entries} if repair else set()
    with (
        only_run("check", config, label=wanted.name),
        publish_run_progress(planning=0.5 if repair else 1) as notify,
        lease_slots(spec, hosts, workers=workers, notify=notify) as bounded,
        open_session(bounded, notify=notify) as session,
    ):
        pool = PrefectPool(session, window=workers, retries=retries)
        parts = MirrorParts(f"repair of {wanted.name}", pool)
        observer = MirrorEvents(session.cancel)
        report = check_mirror(wanted, pool, parts, notify, observer, is_repairing=repair)
    metrics.push(report, mirror=wanted.name, log=get_run_logger())
    return report
