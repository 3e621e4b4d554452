"""Options for several commands. `Shared` is the type of the parameter `context`, which has the global options."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, validators

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cyclopts import Token

Output = Literal["text", "json"]
Origin = Literal["option", "environment", "default"]
Grain = Literal["descriptor", "image"]
_POSITIVE = validators.Number(gt=0)
# The wait for a socket takes fewer than 2**31 milliseconds.
_LONGEST_DAYS = 24
_DAY_S = 24 * 60 * 60
_PARALLEL_TASKS = "Maximum number of parallel tasks, 1 to 64."


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The global options. Times are in seconds; a `timeout_s` of None is no limit.

    `named_store` is the content store that the option or the environment names, with its origin, or None.
    """

    named_store: tuple[str, Origin] | None
    store_options: dict[str, Any]
    timeout_s: float | None
    connect_timeout_s: float
    output: Output
    debug: bool

    @property
    def store(self) -> str:
        """The content store.

        Raises:
            BadInput: no store is named, and the user has no home directory for the default store.
        """
        return _find_default_store() if self.named_store is None else self.named_store[0]

    @property
    def store_from(self) -> Origin:
        """The origin of the value of `store`."""
        return "default" if self.named_store is None else self.named_store[1]


def find_named_store(option: str | None) -> tuple[str, Origin] | None:
    """Return the content store of the option or of `$DIST_STORE`, with its origin, or None."""
    if option is not None:
        return option, "option"
    if variable := os.environ.get("DIST_STORE"):
        return variable, "environment"
    return None


def _find_default_store() -> str:
    """Return the default content store: a directory of the user's data (XDG)."""
    from platformdirs import user_data_path

    try:
        path = user_data_path("prefect-dist", appauthor=False) / "store"
    except RuntimeError:  # some versions return a path that begins with `~` instead
        path = None
    if path is None or path.parts[0] == "~":
        from prefect_dist.cli.inputs import BadInput

        raise BadInput("content store: the user has no home directory for the default store; set --store, DIST_STORE or HOME")
    return str(path)


def option(text: str, **options: Any) -> Parameter:
    """Return a parameter with the help `text`, without a negative form and without a displayed default."""
    return Parameter(negative=(), show_default=False, help=text, **options)


def duration(text: str) -> Parameter:
    """Return a parameter with the help `text`, whose value is a duration such as 30m, or a number of seconds."""
    return Parameter(converter=_convert_duration, validator=_POSITIVE, help=text)


def integer(text: str, *, lowest: int, highest: int | None = None) -> Parameter:
    """Return a parameter with the help `text`, whose value is an integer from `lowest` to `highest`."""
    return Parameter(converter=_convert_integer, validator=validators.Number(gte=lowest, lte=highest), help=text)


def _convert_integer(_type: Any, tokens: "Sequence[Token]") -> int:
    """Return the integer. The converter of cyclopts would round 1.5 without a message."""
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"expected an integer, got {text!r}") from None


def _convert_duration(_type: Any, tokens: "Sequence[Token]") -> float:
    text = tokens[0].value
    if (seconds := _parse_seconds(text)) > _LONGEST_DAYS * _DAY_S:
        raise ValueError(f"expected at most {_LONGEST_DAYS}d, got {text!r}")
    return seconds


def _parse_seconds(text: str) -> float:
    from prefect_dist.ocispec import units
    from prefect_dist.ocispec.errors import InvalidInput

    try:
        return float(text)
    except ValueError:
        pass
    try:
        return units.seconds(text)
    except InvalidInput:
        raise ValueError(f"expected a duration such as 90s, 30m or 1h30m, or a number of seconds, got {text!r}") from None


Shared = Annotated[Context, Parameter(parse=False)]
Concurrency = Annotated[int, integer(_PARALLEL_TASKS, lowest=1, highest=64)]
ConfiguredConcurrency = Annotated[int | None, integer(f"{_PARALLEL_TASKS} Default: that of FILE, or 8.", lowest=1, highest=64)]
Retries = Annotated[int, integer("Number of retries per descriptor.", lowest=0)]
Referrers = Annotated[
    bool,
    option("Include signatures, SBOMs and attestations: referrers, and the digest tags of cosign."),
]
GrainOption = Annotated[
    Grain | None,
    Parameter(name="--grain", help="One Prefect task per descriptor, or one per image, which costs less. Default: descriptor."),
]
ConfiguredGrain = Annotated[
    Grain | None,
    Parameter(
        name="--grain",
        help="One Prefect task per descriptor, or one per image, which costs less. Default: that of FILE, or descriptor.",
    ),
]
Direct = Annotated[bool, option("Run in this process without Prefect, which records nothing. For CI jobs, scripts and cron.")]
Quiet = Annotated[bool, option("Print only the summary and failures.", name=["--quiet", "-q"])]
Workers = Annotated[
    int,
    integer(
        "Maximum number of parallel shards, 1 to 100, as processes of this machine or as runs in the work pool of the "
        "configured Prefect server; 1 does not divide the run.",
        lowest=1,
        highest=100,
    ),
]
DryRun = Annotated[bool, option("Print the plan and change nothing.")]
Platform = Annotated[str | None, Parameter(help="Platform to select from an index. Default: the platform of this machine.")]
Platforms = Annotated[
    list[str] | None,
    option("Platform to select from an index, such as linux/arm64; repeatable. Default: all."),
]
RewriteIndex = Annotated[bool, option("Publish a new index that has only the selected platforms. Its digest is different.")]
Image = Annotated[str, Parameter(name="REF", help="An image, such as redis:7.")]
StoredName = Annotated[str, Parameter(name="NAME", help="A name in the content store, as dist names shows it.")]
BlobDigest = Annotated[str, Parameter(name="DIGEST", help="A complete digest, as dist ls shows it.")]
NewDirectory = Annotated[str, Parameter(name="DIR", help="A directory that is missing or empty.")]
MirrorFile = Annotated[str, Parameter(name="FILE", help="The configuration of a mirror (YAML).")]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """Options for the connections to registries."""

    plain_http: Annotated[
        bool, option("Use plain HTTP for registries without a tls setting. Loopback registries use plain HTTP anyway.")
    ] = False
    read_timeout: Annotated[float, duration("Time to wait for the next bytes, such as 2m; without a unit: seconds.")] = 60
    hosts: Annotated[str | None, Parameter(help="Hosts file: connection settings of registries (YAML).")] = None
    ca_file: Annotated[
        str | None,
        Parameter(help="CA bundle (PEM) that replaces the system's. Loopback registries still use plain HTTP."),
    ] = None
    insecure: Annotated[
        tuple[str, ...],
        option("Registry whose certificate is not verified; repeatable."),
    ] = ()


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class RunNetworkOptions(NetworkOptions):
    """Options for the connections of runs, with Prefect blocks."""

    credentials: Annotated[
        tuple[str, ...],
        option("Prefect block with the credentials of a registry; repeatable."),
    ] = ()


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class LoginOptions:
    """Credentials for the registry of the command. The password is never on the command line."""

    username: Annotated[
        str | None, Parameter(help="User name for the registry. Default: $DIST_USERNAME, or the user of docker login.")
    ] = None
    password_stdin: Annotated[bool, option("Read the password from standard input. Default: $DIST_PASSWORD.")] = False
