"""Fetches from a server that limits requests per second and refuses the others (nginx)."""

import itertools
from pathlib import Path

from prefect_dist.mirror.report import RunReport
from prefect_dist.storage import open_store
from tests import images
from tests.flows.reports import error_lines, result_of
from tests.peers.nginx import put, static_registry
from tests.peers.prefect import PrefectServer

IMAGES = [images.image(seed, layers=1, layer_bytes=1000) for seed in range(5000, 5100)]


def test_100_images_are_fetched_at_20_requests_per_second_with_few_refusals(prefect: PrefectServer, tmp_path: Path) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from prefect_dist.flows.fetch import fetch

    with static_registry(tmp_path / "registry", per_second=20) as registry:
        for number, image in enumerate(IMAGES):
            put(tmp_path / "registry", f"app/{number}", image, "v1")
        references = [f"{registry.host}/app/{number}@{image.root.digest}" for number, image in enumerate(IMAGES)]
        with temporary_settings({PREFECT_API_URL: prefect.url}):
            state = fetch(references, str(tmp_path / "store"), return_state=True)
        report = result_of(state)
        assert isinstance(report, RunReport), report
        assert report.status == "complete", error_lines(report)
        statuses = registry.statuses
    assert len(list(open_store(str(tmp_path / "store")).names)) == len(IMAGES)
    wanted = set(itertools.chain.from_iterable(image.descriptors for image in IMAGES))
    assert {str(info.digest) for info in open_store(str(tmp_path / "store")).walk()} == wanted
    assert statuses.count(200) == 4 * len(
        IMAGES
    )  # for each image a HEAD request, then one request for each of three descriptors
    assert 0 < statuses.count(429) <= len(statuses) / 10
