"""What a run of a mirror leaves for Prometheus: pushed to the Pushgateway at `$DIST_METRICS`; docs/metrics.md says why pushed.

No Prefect here. What cannot be pushed is a warning: the images are where they should be all the same.
"""

import logging
import os
import time
from typing import Protocol
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Gauge, pushadd_to_gateway

from flows.report import Figures, Outcome

_URL = "DIST_METRICS"
_JOB = "prefect-dist"
_TIMEOUT_S = 10
_LAST = "of the last run"

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


class Measured(Protocol):
    """What is known of a run that ended."""

    @property
    def seconds(self) -> float:
        """How long it took."""

    @property
    def status(self) -> Outcome:
        """How it came out."""

    def figures(self) -> Figures:
        """What it came to."""


def push(report: Measured, *, flow: str, mirror: str, log: Log) -> None:
    """Replace what is known of the last run of a flow with a mirror; only a complete run replaces when that was."""
    if not (url := os.environ.get(_URL)):
        return
    if "@" in urlsplit(url).netloc:
        log.warning("%s: expected a URL without user and password; no metrics are pushed", _URL)
        return
    try:
        key = {"flow": flow, "mirror": mirror}
        pushadd_to_gateway(url, job=_JOB, registry=_gauges(report), grouping_key=key, timeout=_TIMEOUT_S)
    except (OSError, ValueError) as exc:  # ValueError: no URL of http
        log.warning("metrics could not be pushed to %s, which %s names: %s", url, _URL, exc)


def _gauges(report: Measured) -> CollectorRegistry:
    figures, now = report.figures(), time.time()
    is_complete = report.status == "complete"
    values: dict[str, tuple[str, float]] = {
        "last_run_timestamp_seconds": ("When the last run ended.", now),
        "last_run_complete": ("Whether it was complete.", is_complete),
        "last_run_duration_seconds": ("How long it took.", report.seconds),
        "pending_targets": (f"Targets that had not yet what they should at the end {_LAST}.", figures.pending),
        "failed_targets": (f"Targets that failed, {_LAST}.", figures.failed),
        "last_run_received_bytes": ("Bytes that it fetched.", figures.received),
        "last_run_sent_bytes": ("Bytes that it sent.", figures.sent),
    }
    if is_complete:
        values["last_success_timestamp_seconds"] = "When the last complete run ended.", now
    registry = CollectorRegistry()
    for name, (told, value) in values.items():
        Gauge(f"dist_{name}", told, registry=registry).set(value)
    return registry
