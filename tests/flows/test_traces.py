"""OpenTelemetry: with an SDK, Prefect exports a span for each flow run and, below, for each task run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import images
from tests.fakes.registry import FakeRegistry
from tests.peers.prefect import PrefectServer
from tests.peers.processes import PATIENCE_S

# A process can set up only one SDK, so the program runs in another process.
_PROGRAM = """
import json, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

from prefect_dist.flows.fetch import fetch

fetch([sys.argv[1]], sys.argv[2], retries=0, return_state=True)
print(json.dumps([json.loads(span.to_json()) for span in exporter.get_finished_spans()]))
"""


def spans(prefect: PrefectServer, reference: str, store: Path, **environment: str) -> list[dict[str, Any]]:
    """Return the spans of a fetch."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, reference, str(store)],
        env={**os.environ, "PREFECT_API_URL": prefect.url, **environment},
        capture_output=True,
        check=True,
        timeout=PATIENCE_S,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("tag", ["v1", "none"])
def test_each_flow_run_and_task_run_is_a_span(prefect: PrefectServer, tmp_path: Path, tag: str) -> None:
    image = images.image(3600, layers=1)
    with FakeRegistry() as registry:
        images.load(registry, "app", image, "v1")
        name = f"{registry.host}/app:{tag}"
        found = {span["name"]: span for span in spans(prefect, name, tmp_path / "store")}

    flow = found.pop(f"fetch {name}")
    assert flow["parent_id"] is None
    assert {span["parent_id"] for span in found.values()} == {flow["context"]["span_id"]}
    assert {span["attributes"]["prefect.run.type"] for span in found.values()} == {"task"}
    kinds = ("manifest", "config", "layer")
    digests = [image.root.digest, *image.blobs]
    fetched = {f"fetch {kind} {digest[:19]}" for kind, digest in zip(kinds, digests, strict=True)}
    assert found.keys() == {f"resolve {name}", *(fetched if tag == "v1" else ())}
    assert {span["status"]["status_code"] for span in found.values()} == {"OK" if tag == "v1" else "ERROR"}
    states = [event["attributes"]["prefect.state.type"] for event in flow["events"]]
    assert states[-1] == ("COMPLETED" if tag == "v1" else "FAILED")


def test_spans_can_be_turned_off(prefect: PrefectServer, tmp_path: Path) -> None:
    with FakeRegistry() as registry:
        images.load(registry, "app", images.image(3601, layers=1), "v1")
        off = {"PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false"}
        assert spans(prefect, f"{registry.host}/app:v1", tmp_path / "store", **off) == []
