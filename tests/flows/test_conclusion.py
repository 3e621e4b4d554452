"""What the artifact of a run shows of very many images, and what its report keeps."""

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.conclusion import concluded
from flows.report import ImageReport, RunReport
from ocispec import Descriptor, Digest
from tests.peers.prefect import PrefectServer

ROOT = Descriptor(media_type="a/b", digest=Digest.of(b""), size=0)
REPORT = RunReport(images=tuple(ImageReport(name=f"a.example/app:{n}", root=ROOT) for n in range(502)), tasks=0, seconds=0)


@flow
def ends() -> State[RunReport]:
    return concluded("many", REPORT)


def test_an_artifact_shows_what_a_page_can_and_says_so(prefect: PrefectServer) -> None:
    with temporary_settings({PREFECT_API_URL: prefect.url}):
        state = ends(return_state=True)
    run = {"flow_runs": {"id": {"any_": [str(state.state_details.flow_run_id)]}}}
    artifacts = {one["key"]: one for one in prefect.post("/artifacts/filter", run)}
    assert artifacts.keys() == {"many", "summary"}
    artifact = artifacts["many"]
    assert artifact["data"].count("a.example/app:") == 500
    assert artifact["description"] == f"{REPORT.summary()} (and 2 more rows, which are not shown)"
    assert len(REPORT.table()) == 502
