"""Parameters that several flows have, as their forms show them."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from flows.blocks import credentials_in, located
from flows.config import hosts
from flows.runner import MOST_WORKERS
from remotes import RegistrySettings
from tasks.session import SessionSpec

Store = Annotated[str, Field(description="The content store: a path, an fsspec URL such as s3://bucket/prefix, or block:NAME")]
ConfiguredConcurrency = Annotated[
    int | None,
    Field(ge=1, le=MOST_WORKERS, description="How many things at once; without it what the configuration says, or 8"),
]
ConfiguredStore = Annotated[
    str | None, Field(description="The content store, as with other flows; without it the one that the configuration names")
]
Configuration = Annotated[str, Field(description="The mirror's configuration: a YAML file, where the run is")]
DryRun = Annotated[bool, Field(description="Only plan: nothing is written")]
StoreOptions = Annotated[
    dict[str, Any], Field(description="Options of the store's file system that are no secrets, such as endpoint_url")
]
Referrers = Annotated[
    bool, Field(description="Also what refers to images and their manifests: signatures, bills of materials, attestations")
]
CONCURRENCY = 8
Concurrency = Annotated[int, Field(ge=1, le=MOST_WORKERS, description="How many things at once")]
Retries = Annotated[int, Field(ge=0, description="Attempts after the first, per descriptor")]


class Network(BaseModel):
    """How registries are reached."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    plain_http: bool = Field(default=False, description="Speak http to registries that are not on this machine")
    connect_timeout: float = Field(default=30, gt=0, description="Seconds to wait for a connection")
    read_timeout: float = Field(default=60, gt=0, description="Seconds to wait for any next byte")
    hosts: str | None = Field(default=None, description="A file, where the run is, with settings of registries")
    ca_file: str | None = Field(default=None, description="PEM file of authorities to trust, instead of the system's")
    insecure: list[str] = Field(default=[], description="Registries whose certificates are not looked at")
    credentials: list[str] = Field(
        default=[], description="Blocks of type Registry Credentials, by name; asked before what docker login left"
    )

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


def session_spec(store: str, store_options: dict[str, Any], network: Network | None = None) -> SessionSpec:
    """What a run's session is opened from.

    Raises:
        InvalidInput: a secret among the plain options, no such block, or a wrong file of hosts.
    """
    url, options = located(store, store_options)
    reached = network or Network()
    return SessionSpec(
        store=url,
        store_options=options,
        registries=reached.settings(),
        credentials=credentials_in(reached.credentials) if reached.credentials else {},
    )
