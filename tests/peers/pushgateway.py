"""Prometheus' Pushgateway (Debian's `prometheus-pushgateway`) on loopback: receives metrics and serves them to scrapers."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.peers.processes import LOOPBACK, free_port, listening, require, running


class Pushgateway:
    """A running gateway."""

    def __init__(self, url: str) -> None:
        self.url = url

    def scraped(self, **labels: str) -> dict[str, float]:
        """Samples with these labels, by name, without the gateway's own."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        samples = [sample for family in families for sample in family.samples if sample.name.startswith("dist_")]
        return {sample.name: sample.value for sample in samples if labels.items() <= sample.labels.items()}


@contextmanager
def pushgateway(directory: Path) -> Iterator[Pushgateway]:
    """Run a gateway for the length of a `with` block; it keeps its data only in memory."""
    program = require("prometheus-pushgateway", "prometheus-pushgateway")
    port = free_port()
    argv = [program, f"--web.listen-address={LOOPBACK}:{port}", "--persistence.file="]  # Debian names one
    with running(argv, ready=listening(port), log=directory / "pushgateway.log"):
        yield Pushgateway(f"http://{LOOPBACK}:{port}")
