"""Parameters that several flows have, as their forms show them."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, Literal

from prefect.context import FlowRunContext
from pydantic import BaseModel, ConfigDict, Field

from prefect_dist.flows.blocks import credentials_in, locate_store
from prefect_dist.mirror.hosts_file import CONCURRENCY, MAX_CONCURRENCY, hosts
from prefect_dist.remotes import RegistrySettings
from prefect_dist.remotes.advice import PARAMETERS
from prefect_dist.transfer.session import SessionSpec


def label(title: str, description: str, **constraints: Any) -> Any:
    """A parameter as its form shows it. Prefect gives parameters titles and descriptions of its own, except where these are."""
    return Field(description=description, json_schema_extra={"title": title, "description": description}, **constraints)


_WAY = "give the run a credentials block (--credentials)"
_WAY_DEPLOYED = "name a credentials block in the run's parameter network"
_STORE = "a path, an fsspec URL such as s3://bucket/prefix, or block:NAME"
_ONCE = "How many things are done at once"

Store = Annotated[str, label("Content store", f"Where images are kept: {_STORE}")]
ConfiguredStore = Annotated[
    str | None, label("Content store", f"Where images are kept, instead of where the configuration says: {_STORE}")
]
Configuration = Annotated[
    str,
    label(
        "Configuration",
        "What is mirrored, in YAML: block:NAME, or the path or URL of a file as whoever runs this sees it, or the text itself",
    ),
]
DryRun = Annotated[bool, label("Dry run", "Only plan: nothing is written")]
PlatformNames = Annotated[
    Literal["all"] | list[str],
    label("Platforms", "All, or a list such as linux/amd64, linux/arm64: images for others are left out"),
]
Referrers = Annotated[
    bool,
    label("Referrers", "Also signatures, bills of materials and attestations: referrers, and cosign's digest tags"),
]
Concurrency = Annotated[int, label("Concurrency", _ONCE, ge=1, le=MAX_CONCURRENCY)]
ConfiguredConcurrency = Annotated[
    int | None,
    label("Concurrency", f"{_ONCE}; without it as the configuration says, or {CONCURRENCY}", ge=1, le=MAX_CONCURRENCY),
]
Retries = Annotated[int, label("Retries", "Attempts after the first, for each task", ge=0)]
StoreOptions = Annotated[
    dict[str, Any],
    label("Store options", "Options of the store's file system that are no secrets, such as endpoint_url"),
]


class Network(BaseModel):
    """How registries are reached."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    credentials: list[str] = Field(
        default=[], description="Blocks of type Registry Credentials, by name; asked before what docker login left"
    )
    plain_http: bool = Field(
        default=False, title="Plain HTTP", description="Speak http to registries that are not on this machine"
    )
    connect_timeout: float = Field(default=30, gt=0, description="Seconds to wait for a connection")
    read_timeout: float = Field(default=60, gt=0, description="Seconds to wait for any next byte")
    hosts: str | None = Field(default=None, description="A file, where the run is, with settings of registries")
    ca_file: str | None = Field(
        default=None, title="CA file", description="PEM file of authorities to trust, instead of the system's"
    )
    insecure: list[str] = Field(default=[], description="Registries whose certificates are not looked at")

    def settings(self) -> RegistrySettings:
        """The same, as `remotes` takes it.

        Raises:
            InvalidInput: the file of hosts is wrong.
        """
        return RegistrySettings(
            hosts=hosts(self.hosts, plain_http=self.plain_http, ca_file=self.ca_file, insecure=self.insecure),
            connect_timeout_s=self.connect_timeout,
            read_timeout_s=self.read_timeout,
        )


Reached = Annotated[
    Network | None, label("Network", "How registries are reached, if not as usual: credentials, time-outs, TLS")
]


def session_spec(
    store: str,
    store_options: dict[str, Any],
    network: Network | None = None,
    *,
    configured: Mapping[str, Any] = MappingProxyType({}),
) -> SessionSpec:
    """Return the specification of a run's session. `configured` are the store options of a configuration, secrets among them.

    Raises:
        InvalidInput: a secret among the plain options, no such block, or a wrong file of hosts.
    """
    url, options = locate_store(store, store_options, configured=configured)
    reached = network or Network()
    registries, is_deployed = reached.settings(), _is_deployed()
    if is_deployed:
        registries = replace(registries, hosts=replace(registries.hosts, advice=PARAMETERS))
    return SessionSpec(
        store=url,
        store_options=options,
        registries=registries,
        credentials=credentials_in(reached.credentials) if reached.credentials else {},
        ways=(_WAY_DEPLOYED if is_deployed else _WAY,),
    )


def _is_deployed() -> bool:
    """Whether the current flow run is that of a deployment, for which there is no command line."""
    context = FlowRunContext.get()
    return context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None
