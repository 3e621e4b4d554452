"""Metrics of runs in a real Pushgateway are those that docs/reference/metrics.md lists."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import images
from tests.fakes.faults import Fault, Refuse
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import Mirrors, image
from tests.peers.prefect import PrefectServer
from tests.peers.processes import free_port
from tests.peers.pushgateway import Pushgateway, pushgateway

DOCUMENT = Path(__file__).parents[2] / "docs/reference/metrics.md"
ONE = images.image(3500, layers=1)
TOTAL = sum(map(len, ONE.blobs.values())) + len(ONE.manifests[-1].raw)


@pytest.fixture(autouse=True)
def _api(prefect: PrefectServer) -> Iterator[None]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect.url}):
        yield


@pytest.fixture
def entry(source: FakeRegistry, target: FakeRegistry) -> dict[str, Any]:
    """An entry for one image at the source."""
    images.load(source, "app", ONE, "v1")
    return image(source, target, "app:v1")


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pushgateway]:
    with pushgateway(tmp_path) as gateway:
        monkeypatch.setenv("DIST_METRICS", gateway.url)
        yield gateway


def test_each_run_of_a_mirror_replaces_the_metrics_of_the_last_run(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, entry: dict[str, Any], gateway: Pushgateway
) -> None:
    mirrors.run(entry, dry_run=True, name="a/b")
    assert gateway.scraped() == {}
    mirrors.run(entry, name="a/b")

    first = gateway.scraped(job="prefect-dist", flow="mirror", mirror="a/b")
    assert first.keys() == set(re.findall(r"^\| `(dist_\w+)` \|", DOCUMENT.read_text(), re.MULTILINE))
    assert first["dist_last_run_timestamp_seconds"] == first["dist_last_success_timestamp_seconds"] > 1e9
    assert first["dist_last_run_duration_seconds"] > 0
    assert first["dist_registry_last_success_timestamp_seconds"] >= first["dist_last_success_timestamp_seconds"]
    assert first["dist_registry_lag_seconds"] == 0
    figures = {name.removeprefix("dist_"): value for name, value in first.items() if "seconds" not in name}
    assert figures == {
        "last_run_success": 1,
        "pending_targets": 0,
        "failed_targets": 0,
        "vetoed_targets": 0,
        "registry_pending_targets": 0,
        "registry_failed_targets": 0,
        "last_run_received_bytes": TOTAL,
        "last_run_sent_bytes": TOTAL,
    }

    target.inject(Fault(method="PUT", path="/v2/app/manifests/v2", nth=None, action=Refuse(403)))
    images.load(source, "app", images.image(3501, layers=1), "v2")
    mirrors.run(entry, image(source, target, "app:v2"), image(source, target, "app:none"), name="a/b")

    then = gateway.scraped(flow="mirror", mirror="a/b")
    assert then["dist_last_success_timestamp_seconds"] == first["dist_last_success_timestamp_seconds"]
    assert then["dist_last_run_timestamp_seconds"] > first["dist_last_run_timestamp_seconds"]
    assert (then["dist_last_run_success"], then["dist_pending_targets"], then["dist_failed_targets"]) == (0, 2, 2)


def test_each_registry_keeps_its_last_success_and_has_a_lag_until_it_serves_the_change(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, entry: dict[str, Any], gateway: Pushgateway
) -> None:
    with FakeRegistry() as other:
        wanted = (entry, image(source, other, "app:v1"))

        def scrape() -> tuple[dict[str, float], dict[str, float]]:
            mirrors.run(*wanted, name="two")
            bad, good = (
                {
                    name.removeprefix("dist_registry_"): value
                    for name, value in gateway.scraped(flow="mirror", mirror="two", registry=place.host).items()
                }
                for place in (target, other)
            )
            return bad, good

        before, _ = scrape()
        images.load(source, "app", images.image(3503, layers=1), "v1")
        target.inject(Fault(method="PUT", path="/v2/app/manifests/v1", action=Refuse(403)))
        bad, good = scrape()
        assert (bad["failed_targets"], bad["pending_targets"]) == (1, 1)
        assert bad["lag_seconds"] > 0
        assert bad["last_success_timestamp_seconds"] == before["last_success_timestamp_seconds"]
        assert (good["failed_targets"], good["pending_targets"], good["lag_seconds"]) == (0, 0, 0)
        assert good["last_success_timestamp_seconds"] > before["last_success_timestamp_seconds"]

        later, _ = scrape()
        assert (later["failed_targets"], later["pending_targets"], later["lag_seconds"]) == (0, 0, 0)
        assert later["last_success_timestamp_seconds"] > good["last_success_timestamp_seconds"]


def test_seed_and_check_push_metrics_under_their_flow_and_mirror(
    tmp_path: Path, mirrors: Mirrors, entry: dict[str, Any], gateway: Pushgateway
) -> None:
    from prefect_dist.flows.check import check
    from prefect_dist.flows.seed import seed

    mirrors.run(entry)
    seeding = tmp_path / "seeding.yaml"
    to = entry["target"].partition("/")[0]
    seeding.write_text(json.dumps({"seed": {"images": [entry["source"]], "to": [f"{to}/seeded"]}}))
    seed(config=str(seeding), store=str(tmp_path / "store"), return_state=True)
    check(str(tmp_path / "mirror.yaml"), str(tmp_path / "store"), return_state=True)

    assert gateway.scraped(flow="seed", mirror="seeding")["dist_last_run_success"] == 1
    assert gateway.scraped(flow="check", mirror="mirror")["dist_pending_targets"] == 0


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Returns the warnings of a run."""
    return lambda: [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:FREE_PORT", "metrics could not be pushed to 127.0.0.1:"),
        ("http://me:secret-4711@127.0.0.1", "expected a URL without user and password"),
    ],
)
def test_a_failed_push_of_metrics_is_a_warning_without_secrets(
    mirrors: Mirrors, entry: dict[str, Any], warnings: Callable[[], list[str]], url: str, message: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIST_METRICS", url.replace("FREE_PORT", str(free_port())))
        report = mirrors.run(entry)

    assert report.status == "complete"
    (warning,) = warnings()
    assert message in warning
    assert "secret-4711" not in warning


def test_the_metrics_of_a_vetoed_run_count_as_success(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, entry: dict[str, Any], gateway: Pushgateway
) -> None:
    images.load(source, "app", images.image(3502, layers=1), "v2")
    vetoed = image(source, target, "app:v2", gate={"command": ["false"]})
    mirrors.run(entry, vetoed, name="vetoes")

    metrics = gateway.scraped(flow="mirror", mirror="vetoes")
    assert metrics["dist_last_success_timestamp_seconds"] == metrics["dist_last_run_timestamp_seconds"]
    targets = {name: metrics[f"dist_{name}_targets"] for name in ("pending", "failed", "vetoed")}
    assert (metrics["dist_last_run_success"], targets) == (1, {"pending": 1, "failed": 0, "vetoed": 1})
