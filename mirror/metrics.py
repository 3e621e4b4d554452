"""Metrics of the run of a mirror for Prometheus, pushed to the Pushgateway at `$DIST_METRICS` (docs/reference/metrics.md).

A failed push of metrics is a warning: the images are published.
"""

import logging
import os
import time
from collections.abc import Mapping
from http.client import HTTPException, InvalidURL
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from prefect_dist.mirror.report import RegistryState, RunReport

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_URL = "DIST_METRICS"
_JOB = "prefect-dist"
_TIMEOUT_S = 10

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


def push_metrics(report: RunReport, *, log: Log) -> None:
    """Push the metrics of a run of a mirror's configuration. Other runs and dry runs have no metrics.

    Only a run without failures replaces the time of the last success.
    """
    if report.configuration is None or report.is_dry or not (url := os.environ.get(_URL)):
        return
    url = url if "://" in url else f"http://{url}"  # as prometheus-client reads the URL
    if _has_userinfo(url):
        log.warning("%s: expected a URL without user and password; no metrics are pushed", _URL)
        return
    from prometheus_client import pushadd_to_gateway  # noqa: PLC0415 - most runs push no metrics

    try:
        key = {"flow": report.flow, "mirror": report.configuration}
        pushadd_to_gateway(url, job=_JOB, registry=_gauges(report), grouping_key=key, timeout=_TIMEOUT_S)
        for state in report.registries:  # a group of metrics each, so that a failed registry keeps its last success
            place = {**key, "registry": state.host}
            pushadd_to_gateway(url, job=_JOB, registry=_registry_gauges(state), grouping_key=place, timeout=_TIMEOUT_S)
    except (InvalidURL, ValueError):  # their messages contain the URL, whose query may have a token
        log.warning("%s: expected a URL such as http://pushgateway:9091; no metrics are pushed", _URL)
    except (OSError, HTTPException) as exc:
        reason = exc if isinstance(exc, OSError) else f"the server sent no valid HTTP response ({type(exc).__name__})"
        log.warning("metrics could not be pushed to %s, the host in %s: %s", urlsplit(url).netloc, _URL, reason)


def _has_userinfo(url: str) -> bool:
    try:
        return "@" in urlsplit(url).netloc
    except ValueError:  # no URL; its text may have a password all the same
        return "@" in url


def _gauges(report: RunReport) -> "CollectorRegistry":
    counts, now = report.counts, time.time()
    failed = sum(counts.get(key, 0) for key in ("failed", "damaged", "unresolved"))
    vetoed = counts.get("vetoed", 0)
    is_success = report.status in ("complete", "vetoed")
    values: dict[str, tuple[str, float]] = {
        "last_run_timestamp_seconds": ("End of the last run.", now),
        "last_run_success": ("1 if nothing failed in the last run, otherwise 0.", is_success),
        "last_run_duration_seconds": ("Duration of the last run.", report.seconds),
        "pending_targets": ("Targets without the wanted image at the end of the last run.", failed + vetoed),
        "failed_targets": ("Targets that failed in the last run.", failed),
        "vetoed_targets": ("Targets that a gate kept an image from in the last run.", vetoed),
        "last_run_received_bytes": ("Bytes that the last run fetched.", counts["fetched_bytes"]),
        "last_run_sent_bytes": ("Bytes that the last run sent.", counts["sent_bytes"]),
    }
    if is_success:
        values["last_success_timestamp_seconds"] = "End of the last run without failures.", now
    return _make_gauges(values)


def _registry_gauges(state: RegistryState) -> "CollectorRegistry":
    values: dict[str, tuple[str, float]] = {
        "registry_pending_targets": ("Targets at the registry without the wanted image.", state.pending),
        "registry_failed_targets": ("Targets at the registry that failed in the last run.", state.failed),
    }
    if state.lag_s is not None:
        values["registry_lag_seconds"] = "Age of the oldest known change that the registry does not serve.", state.lag_s
    if state.is_success:
        values["registry_last_success_timestamp_seconds"] = "End of the last run without failures at the registry.", time.time()
    return _make_gauges(values)


def _make_gauges(values: Mapping[str, tuple[str, float]]) -> "CollectorRegistry":
    from prometheus_client import CollectorRegistry, Gauge  # noqa: PLC0415 - most runs push no metrics

    registry = CollectorRegistry()
    for name, (text, value) in values.items():
        Gauge(f"dist_{name}", text, registry=registry).set(value)
    return registry
