"""Parameters of several flows, with the labels of their form fields in Prefect's UI."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from prefect.context import FlowRunContext
from pydantic import BaseModel, ConfigDict, Field

from prefect_dist.flows.blocks import PrefectBlocks
from prefect_dist.mirror.hosts_file import CONCURRENCY, MAX_CONCURRENCY
from prefect_dist.mirror.resources import NetworkParameters, RunResources
from prefect_dist.remotes.advice import PARAMETERS
from prefect_dist.transfer.pool import Grain


def label(title: str, description: str, **constraints: Any) -> Any:
    """Return the form field of a parameter, with a title and a description instead of Prefect's defaults."""
    return Field(description=description, json_schema_extra={"title": title, "description": description}, **constraints)


_WAY = "give the run a credentials block (--credentials)"
_WAY_DEPLOYED = "name a credentials block in the run's parameter network"
_STORE = "a path, an fsspec URL such as s3://bucket/prefix, or block:NAME"
_TASKS = f"Maximum parallel tasks, 1 to {MAX_CONCURRENCY}"

Store = Annotated[str, label("Content store", f"Content store: {_STORE}")]
ConfiguredStore = Annotated[
    str | None, label("Content store", f"Content store: {_STORE}; default: the store in the configuration")
]
Configuration = Annotated[
    str,
    label(
        "Configuration",
        "Mirror configuration: block:NAME, a path or URL that the worker can read, or inline YAML",
    ),
]
DryRun = Annotated[bool, label("Dry run", "Stop after the plan, and write nothing")]
PlatformNames = Annotated[
    Literal["all"] | list[str],
    label(
        "Platforms", "all, or a list of platforms such as linux/amd64, linux/arm64; the run skips images for further platforms"
    ),
]
Referrers = Annotated[
    bool,
    label("Referrers", "Include referrers (signatures, SBOMs, attestations) and digest tags"),
]
RewriteIndex = Annotated[
    bool, label("Rewrite index", "Push a new index of only these platforms, for registries that reject a sparse index")
]
Concurrency = Annotated[int, label("Concurrency", _TASKS, ge=1, le=MAX_CONCURRENCY)]
ConfiguredConcurrency = Annotated[
    int | None,
    label("Concurrency", f"{_TASKS}; default: the value in the configuration, or {CONCURRENCY}", ge=1, le=MAX_CONCURRENCY),
]
WorkerDeployment = Annotated[
    str, label("Worker deployment", "Deployment of the flow mirror-shard whose work pool runs the shards")
]
Workers = Annotated[
    int,
    label("Workers", "Maximum number of parallel shards, 1 to 100; 1 does not divide the run", ge=1, le=100),
]
Retries = Annotated[int, label("Retries", "Maximum retries of each task", ge=0)]
_GRAIN = "The work of one task run: descriptor, or image, which costs less"
GrainOption = Annotated[Grain, label("Grain", _GRAIN)]
ConfiguredGrain = Annotated[Grain | None, label("Grain", f"{_GRAIN}; default: the value in the configuration, or descriptor")]
StoreOptions = Annotated[
    dict[str, Any],
    label("Store options", "Options of the store's file system without secrets, such as endpoint_url"),
]


class Network(BaseModel):
    """Connection settings and credentials for registries."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    credentials: list[str] = Field(
        default=[], description="Names of Registry Credentials blocks; they take precedence over docker login"
    )
    plain_http: bool = Field(
        default=False,
        title="Plain HTTP",
        description="Use plain HTTP for registries without a tls setting; loopback registries use it anyway",
    )
    connect_timeout: float = Field(default=30, gt=0, description="Maximum seconds until a connection is established")
    read_timeout: float = Field(default=60, gt=0, description="Maximum seconds between two reads of a response")
    hosts: str | None = Field(default=None, description="Path of a hosts file on the machine of the run")
    ca_file: str | None = Field(default=None, title="CA file", description="CA bundle (PEM), which replaces the system's")
    insecure: list[str] = Field(
        default=[], description="Registries, as host[:port], whose certificates the run does not verify"
    )


Reached = Annotated[Network | None, label("Network", "Connection settings for registries: credentials, timeouts, TLS")]


def make_resources(store: str | None, store_options: Mapping[str, Any], network: Network | None = None) -> RunResources:
    """Return the store and the connections that parameters of a flow name."""
    is_deployed = _is_deployed()
    return RunResources(
        store=store,
        store_options=store_options,
        network=NetworkParameters() if network is None else NetworkParameters(**network.model_dump()),
        blocks=PrefectBlocks(),
        ways=(_WAY_DEPLOYED if is_deployed else _WAY,),
        advice=PARAMETERS if is_deployed else None,
    )


def _is_deployed() -> bool:
    """Return True if the current flow run is the run of a deployment, which has no command options."""
    context = FlowRunContext.get()
    return context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None
