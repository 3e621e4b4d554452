"""What the grammar's parts share: the groups that help shows commands in, and options that several commands have."""

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Group, Parameter, validators

from prefect_dist.cli.context import Context

RUNS = Group("As Prefect runs", sort_key=1)
HAND = Group("By hand, without Prefect", sort_key=2)
COMMON = Group("For all commands", sort_key=3)
POSITIVE = validators.Number(gt=0)

Shared = Annotated[Context, Parameter(parse=False)]
Concurrency = Annotated[int, Parameter(validator=validators.Number(gte=1, lte=64), help="How many things at once.")]
ConfiguredConcurrency = Annotated[
    int | None,
    Parameter(validator=validators.Number(gte=1, lte=64), help="How many things at once. Default: as FILE says, or 8."),
]
Dialect = Literal["dist", "skopeo"]
From = Annotated[
    Dialect, Parameter(name="--from", help="Whose form FILE has: ours and regsync's (dist), or that of skopeo sync.")
]
To = Annotated[
    list[str] | None,
    Parameter(negative=(), help="With --from skopeo: a registry, with or without a path, that images go to; repeatable."),
]
Retries = Annotated[int, Parameter(validator=validators.Number(gte=0), help="Attempts after the first, per descriptor.")]
Referrers = Annotated[
    bool,
    Parameter(negative=(), help="Also signatures, bills of materials and attestations: referrers, and cosign's digest tags."),
]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], negative=(), help="Only the summary and failures.")]
Platform = Annotated[str | None, Parameter(help="Which of an index's images. Default: this machine's.")]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """How registries are reached."""

    plain_http: Annotated[bool, Parameter(negative=(), help="Speak http to registries that are not on this machine.")] = False
    read_timeout: Annotated[float, Parameter(validator=POSITIVE, help="Seconds to wait for any next byte.")] = 60
    hosts: Annotated[str | None, Parameter(help="YAML file with settings of registries.")] = None
    ca_file: Annotated[
        str | None,
        Parameter(help="PEM file of authorities to trust, instead of the system's; http to those on this machine stays http."),
    ] = None
    insecure: Annotated[
        tuple[str, ...],
        Parameter(negative=(), show_default=False, help="A registry whose certificate is not looked at; repeatable."),
    ] = ()


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class RunNetworkOptions(NetworkOptions):
    """The same for runs, which know Prefect's blocks."""

    credentials: Annotated[
        tuple[str, ...],
        Parameter(negative=(), show_default=False, help="A Prefect block with credentials for a registry; repeatable."),
    ] = ()


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class LoginOptions:
    """Who we are to the one registry that a command is about; the password is never on the command line."""

    username: Annotated[
        str | None, Parameter(help="User at the registry of the images. Default: $DIST_USERNAME, or as docker login left it.")
    ] = None
    password_stdin: Annotated[
        bool, Parameter(negative=(), help="Read the password from standard input. Default: $DIST_PASSWORD.")
    ] = False
