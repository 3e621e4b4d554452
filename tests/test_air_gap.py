"""The commands of the guide for air gaps work in order, with real registries and a real S3 server."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.referrers import cosign_tags, fallback_tag
from prefect_dist.storage import open_store
from tests import images
from tests.cli.dist import write_forwarder
from tests.peers import skopeo
from tests.peers.prefect import PrefectServer
from tests.peers.registry import CncfRegistry, cncf_registry
from tests.peers.seaweedfs import S3Server

GUIDE = Path(__file__).parents[1] / "docs" / "how-to" / "air-gap.md"
_TIMEOUT_S = 900

APP = images.index([images.image(1230), images.image(1231, platform="linux/arm64/v8")])
TOOLS = images.image(1232)
BILL, SIGNATURE = images.artifact(1233, subject=APP), images.artifact(1234)
SIGNATURE_TAG = cosign_tags(Digest.parse(APP.root.digest))[0]
LISTING_TAG = fallback_tag(Digest.parse(APP.root.digest))


def extract_commands(document: str) -> str:
    """Return the commands of all blocks of a document."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    assert blocks
    return "".join(blocks)


def push_images(outside: CncfRegistry) -> None:
    images.push(outside.host, "team/app", APP, "1.0")
    images.push(outside.host, "team/app", SIGNATURE, SIGNATURE_TAG)
    images.push(outside.host, "team/app", BILL)
    images.push(outside.host, "team/app", images.index([BILL]), LISTING_TAG)
    images.push(outside.host, "team/tools", TOOLS, "3")


def run_commands(document: str, places: dict[str, str], directory: Path, **environment: str) -> None:
    """Run the commands of a part of the guide, with `places` in place of its hosts and paths. Each command must succeed."""
    script = extract_commands(document)
    for name, place in places.items():
        script = script.replace(name, place)
    argv = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(argv, cwd=directory, capture_output=True, env={**os.environ, **environment}, check=False)
    assert done.returncode == 0, (script, done.stdout.decode(), done.stderr.decode())


@pytest.mark.timeout(_TIMEOUT_S)
def test_the_commands_of_the_air_gap_guide_copy_and_repair_images_across_the_gap(
    prefect: PrefectServer, s3: S3Server, tmp_path: Path
) -> None:
    assert prefect.url
    outer, rest = GUIDE.read_text().split("## Inside: check the delivery")
    inner, last = rest.split("The repair sends missing content again")
    keys = {"AWS_ACCESS_KEY_ID": s3.key, "AWS_SECRET_ACCESS_KEY": s3.secret, "AWS_DEFAULT_REGION": s3.region}
    keys["AWS_ENDPOINT_URL"] = s3.endpoint
    work, programs = tmp_path / "work", tmp_path / "bin"
    for path in (work, programs, tmp_path / "srv", tmp_path / "media"):
        path.mkdir()
    write_forwarder(programs)  # the guide starts `dist` 20 times
    keys["PATH"] = f"{programs}:{os.environ['PATH']}"
    with cncf_registry(tmp_path / "outside") as outside, cncf_registry(tmp_path / "inside") as inside:
        places = {"registry.outside.example": outside.host, "registry.inside.example": inside.host}
        places |= {"s3://air-gap": f"{s3.url}/air-gap", "/srv/": f"{tmp_path}/srv/", "/media/": f"{tmp_path}/media/"}
        push_images(outside)
        run_commands(outer, places, work, **keys)
        assert inside.requests() == []
        before = len(outside.requests())

        run_commands(inner, places, work, **keys)
        child = Path(*APP.manifests[0].digest.split(":"))
        shutil.rmtree(tmp_path / "inside/data/docker/registry/v2/repositories/mirror/team/app/_manifests/revisions" / child)
        with pytest.raises(skopeo.SkopeoError):
            skopeo.copy(f"docker://{inside.host}/mirror/team/app:1.0", f"dir:{tmp_path / 'damaged'}")
        run_commands(last, places, work, **keys)

        assert len(outside.requests()) == before
        for below in ("mirror", "from-archive", "from-bucket"):
            for name, built in (("team/app:1.0", APP), ("team/tools:3", TOOLS)):
                skopeo.copy(f"docker://{inside.host}/{below}/{name}", f"dir:{tmp_path}/{below}-{built.root.digest}")
                assert skopeo.raw(f"docker://{inside.host}/{below}/{name}") == built.manifests[-1].raw
        for below in ("mirror", "from-archive", "from-bucket"):
            about = f"docker://{inside.host}/{below}/team/app"
            assert skopeo.raw(f"{about}:{SIGNATURE_TAG}") == SIGNATURE.manifests[-1].raw
            assert BILL.root.digest.encode() in skopeo.raw(f"{about}:{LISTING_TAG}")
        assert (work / "failed.txt").read_text() == ""
    assert list(open_store(str(tmp_path / "srv" / "inside")).names)
