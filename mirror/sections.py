"""The sections of a mirror's configuration file, which pydantic validates.

Keys of regsync's files (version 1) keep their names and meanings, so a regsync file loads unchanged. `mirror.config` converts
sections into values.
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from prefect_dist.mirror.hosts_file import BLOB_CHUNK, BLOB_MAX, CONCURRENCY, MAX_CONCURRENCY, Registry
from prefect_dist.mirror.naming import Rename
from prefect_dist.mirror.selection import compile_pattern
from prefect_dist.mirror.semver import Range
from prefect_dist.mirror.validation import Flag, Host, LenientSection, Seconds, Text, key, no_effect, valid_by
from prefect_dist.ocispec.platform import Platform
from prefect_dist.transfer.pool import Grain


def _date(value: object) -> object:
    """Return the time in a text. Without a time zone, the text is in UTC."""
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        raise ValueError("expected a date such as 2026-01-31, or a time such as 2026-01-31T12:00:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _entry_point(value: str) -> str:
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
        return value
    raise ValueError("expected a callable, as module:function")


_TEMPLATE = 'may be {{env "NAME"}} or {{file "PATH"}}'

Regex = Annotated[Text, valid_by(compile_pattern)]
PlatformName = Annotated[Text, valid_by(Platform.parse)]
Date = Annotated[datetime, BeforeValidator(_date, json_schema_input_type=str)]
OneOrMore = Annotated[
    list[Text],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=Text | list[Text]),
]
TextOrNothing = Annotated[
    Text, BeforeValidator(lambda value: "" if value is None else value, json_schema_input_type=str | float | None)
]


class Created(LenientSection):
    """A range of creation dates. An image without a date passes."""

    after: Date | None = key("Select images created at or after this date (UTC) or time")
    within: Seconds | None = key("Select images created within this period before now, such as 90d")


class LatestTags(LenientSection):
    """The newest of the tags that are versions."""

    count: int = Field(ge=1, description="Number of tags per group; a group has equally many numbers and the same other text")
    per: Literal["all", "major", "minor"] = Field(
        default="all", description="Make a separate group for each major or each minor version"
    )


class TagFilter(LenientSection):
    """A filter for the tags of a repository. A tag must meet each condition."""

    allow: list[Regex] = key("Regular expressions; at least one must match the whole tag", default=[])
    deny: list[Regex] = key("Regular expressions; none may match the whole tag", default=[])
    semver_range: list[Annotated[Text, valid_by(Range.parse)]] = key(
        "Version ranges; at least one must contain the tag, such as '>=1.2 <2.0'; operators: = > < >= <= ~ ^", default=[]
    )
    latest: LatestTags | None = key("Select only the newest versions of the remaining tags")


class Tags(TagFilter):
    """A filter for the tags of a repository, and for the creation dates of their images."""

    created: Created | None = key("Select only images created in this period, among the tags of tags and tagSets")


class Repositories(LenientSection):
    """A filter for the repositories of a registry."""

    allow: list[Regex] = key("Regular expressions; at least one must match the whole name", default=[])
    deny: list[Regex] = key("Regular expressions; none may match the whole name", default=[])


class RenameRule(LenientSection):
    """A rule that changes repositories and tags at a target."""

    match: Regex = Field(description="Regular expression that must match the whole repository:tag at the target")
    to: Text = Field(description="The new repository:tag; $1 or ${name} inserts a group of the expression")

    @model_validator(mode="after")
    def _validate_groups(self) -> "RenameRule":
        self.to_rename()
        return self

    def to_rename(self) -> Rename:
        """Return the rule as `mirror.naming` applies it."""
        return Rename(match=self.match, to=self.to)


class GateSection(LenientSection):
    """An external check that may veto the publication of an image."""

    command: list[Text] = key("A program and its arguments", default=[])
    python: Annotated[Text, AfterValidator(_entry_point)] | None = key("A callable, as module:function")
    timeout: Seconds = Field(default=300, description="Maximum duration of one check")
    existing: Flag = key("Check images that exist at their targets, too, in each run; the report lists a veto", default=False)

    @model_validator(mode="after")
    def _validate_kind(self) -> "GateSection":
        if bool(self.command) == bool(self.python):
            raise ValueError("expected either command or python")
        return self


class PruneSection(LenientSection):
    """The conditions for deleting orphaned tags."""

    after: Seconds = Field(default=7 * 86400, description="Grace period after a run first finds the tag orphaned")
    most: int = Field(
        default=20,
        ge=1,
        description="Maximum number of tags deleted in one run, for all entries together; the oldest orphaned tags first",
    )


class ReferrerFilterSection(LenientSection):
    """A filter for the referrers that a registry lists."""

    artifact_type: Text | None = key("Artifact type of the referrer; default: any")
    annotations: dict[str, TextOrNothing] = key(
        "Annotations that the referrer must have; an empty value matches any value", default={}
    )


class Options(LenientSection):
    """The options of an entry. The section `defaults` may set each option for every entry."""

    backup: Text | None = key(
        "Tag or reference for a backup of each overwritten image, such as backup-{{.Ref.Tag}}; .Ref is the target"
    )
    interval: Seconds | None = key("Validated, never executed: set the schedule on the deployment")
    schedule: Text | None = key(
        "Cron expression; validated, never executed: set the schedule on the deployment; overrides interval"
    )
    digest_tags: Flag | None = key("Mirror cosign's digest tags: sha256-….sig, .att, .sbom; default: the value of referrers")
    referrers: Flag = key(
        "Mirror the referrers of each image (signatures, SBOMs, attestations) and its digest tags", default=False
    )
    referrer_filters: list[ReferrerFilterSection] = key(
        "With referrers: mirror only listed referrers that match one of these filters; does not filter digest tags", default=[]
    )
    platforms: list[PlatformName] | None = key(
        "Mirror only these platforms of an index, such as linux/arm64; the index keeps its digest but is sparse"
    )
    rewrite_index: Flag = key(
        "Publish a new index of only these platforms, with another digest, for targets that reject a sparse index",
        default=False,
    )
    gate: GateSection | None = key("External check that may veto the publication of an image")
    prune: PruneSection | None = key("Delete orphaned tags: tags that this mirror created and no entry selects any more")
    immutable_tags: list[Regex] = key(
        "Regular expressions for tags that never change; a run looks up a mirrored tag only at its targets", default=[]
    )
    trust_lock: Flag = key(
        "For immutableTags: trust the lock file and send no request, so a run misses changes at a target", default=False
    )
    rename: list[RenameRule] = key("Rules for names at targets; a run applies the first that matches", default=[])

    ratelimit: dict[str, Any] | None = no_effect(
        "the plan shows how much of a quota the run needs, and requests wait as long as a registry demands"
    )
    fast_check: Flag | None = no_effect("a run never sends content again that a target has")
    fast_copy: Flag | None = no_effect("a run never sends content again that a target has")
    force_recursive: Flag | None = no_effect("`dist check --repair` sends missing content")
    include_external: Flag | None = no_effect("non-distributable layers stay at the URLs in their descriptors")
    media_types: list[Text] | None = no_effect("a run mirrors images of all media types")
    hooks: dict[str, Any] | None = no_effect("regsync ignores hooks, too; `gate` checks images before publication")
    referrer_source: Text | None = no_effect("a run reads referrers from the repository of their image")
    referrer_target: Text | None = no_effect("a run publishes referrers in the repository of their image")
    referrer_slow: Flag | None = no_effect("a run uses the referrers API, or the fallback tag if there is no API")


class Defaults(Options):
    """The default options of entries, and regsync's options of a run."""

    parallel: int | None = key("regsync's name for concurrency; values above 64 count as 64", ge=0)
    blob_limit: int | None = no_effect("the size of manifests has a fixed limit, and the size of blobs has no limit")
    cache_count: int | None = no_effect("a run keeps the answers of registries until it ends")
    cache_time: Text | None = no_effect("a run keeps the answers of registries until it ends")
    skip_docker_config: Flag | None = no_effect("credentials in the configuration take precedence over `docker login`")
    user_agent: Text | None = no_effect("requests name this program and its version")


class SyncEntry(Options):
    """A source, its targets, and a selection of images."""

    source: Text = Field(
        description=(
            "Registry, repository or image, depending on type; short names are Docker Hub's; a scheme such as oci: is valid"
        )
    )
    target: Text | None = key(
        "Registry, repository or image, depending on type; may be a template; a scheme such as oci: is valid"
    )
    targets: list[Text] = key("Several targets, instead of target", default=[])
    type: Literal["registry", "repository", "image"] = Field(description="Kind of source and target")
    tags: Tags | None = key("Filter for tags; default: all tags")
    tag_sets: list[TagFilter] = key("Several filters for tags; a tag must pass one of them", default=[])
    repos: Repositories | None = key("Filter for the repositories of a registry")
    platform: PlatformName | None = key("Mirror the image for os/architecture[/variant] in place of its index")

    @model_validator(mode="after")
    def _validate_alternatives(self) -> "SyncEntry":
        if bool(self.target) == bool(self.targets):
            raise ValueError("expected either target or targets")
        if self.platform and self.platforms:
            raise ValueError("expected either platform or platforms")
        return self


class SeedSection(Options):
    """Images that `dist seed` mirrors to registries, each under its own repository and tag."""

    images: list[Text] = key("Images, such as redis:7, oci:DIR:TAG or store:NAME", default=[])
    file: Text | None = Field(default=None, alias="list", description="File with one image per line; # starts a comment")
    to: OneOrMore = Field(
        min_length=1, description="Target registries, each optionally with a path that precedes the repositories"
    )


class LoginSection(LenientSection):
    """The credentials for a registry."""

    user: Text | None = key(f"User name; {_TEMPLATE}", repr=False)
    pass_: Text | None = key(f"Password or access token; {_TEMPLATE}", alias="pass", repr=False)
    token: Text | None = key(f"Identity token (OAuth2 refresh token), instead of a password; {_TEMPLATE}", repr=False)

    @model_validator(mode="after")
    def _validate_login(self) -> "LoginSection":
        if self.user and not (self.pass_ or self.token):
            raise ValueError("expected pass or token in addition to user")
        if self.pass_ and not self.user:
            raise ValueError("expected user in addition to pass")
        return self


class MirrorRegistry(LoginSection, Registry):
    """The connection settings and the credentials of a registry."""

    block: Text | None = key("Prefect block with the credentials: NAME of a Registry Credentials block, or TYPE/NAME")

    @model_validator(mode="after")
    def _validate_block(self) -> "MirrorRegistry":
        if self.block and (self.user or self.pass_ or self.token):
            raise ValueError("expected either block, or user, pass and token")
        return self


class Creds(LoginSection):
    """The settings of a registry in regsync's form: the same as in `registries`, including the name."""

    registry: Text = Field(description="host[:port] of the registry in references; may be a template")
    hostname: Host | None = key("host[:port] of the server, if it differs from registry")
    tls: Annotated[Literal["", "enabled", "insecure", "disabled"], BeforeValidator(lambda value: str(value).lower())] = key(
        "HTTPS (enabled), HTTPS with any certificate (insecure) or HTTP (disabled)", default=""
    )
    regcert: Text | None = key("CA bundle (PEM) that the run trusts in addition to the system's", repr=False)
    client_cert: Text | None = key("Client certificate, as PEM", repr=False)
    client_key: Text | None = key("Key of the client certificate, as PEM", repr=False)
    mirrors: list[Host] = key("Registry mirrors, which a run tries first; higher priority first", default=[])
    priority: int = key("Priority of this registry as a registry mirror of others", default=0, ge=0)
    path_prefix: str = key("Path that precedes the names of repositories", default="")
    req_per_sec: float = key("Maximum number of requests per second; 0: no limit", default=0, ge=0)
    req_concurrent: int = key("Maximum number of concurrent requests; 0: no limit", default=0, ge=0)
    api_opts: dict[str, Any] = key('Only disableHead: "true" has an effect', default={})

    blob_chunk: int = key(f"{BLOB_CHUNK}; 0: the default", default=0, ge=0)
    blob_max: int = key(f"{BLOB_MAX}; 0: the default", default=0, ge=-1)

    cred_helper: Text | None = no_effect("configure credential helpers under credHelpers in docker's config.json")
    cred_expire: Text | None = no_effect("configure credential helpers in docker's config.json")
    cred_host: Text | None = no_effect("configure credential helpers in docker's config.json")
    repo_auth: Flag | None = no_effect("a run requests a token for each repository")
    api: Text | None = no_effect("there is only one API")
    scheme: Text | None = no_effect("tls sets the scheme")

    @model_validator(mode="after")
    def _validate_certificate(self) -> "Creds":
        if bool(self.client_cert) != bool(self.client_key):
            raise ValueError("expected both clientCert and clientKey, or neither")
        return self


class StoreSection(LenientSection):
    """The content store of a mirror."""

    url: Text = Field(description="A path, an fsspec URL such as s3://bucket/prefix, or block:NAME")
    options: dict[str, Any] = key(f"Options of the store's file system; a secret {_TEMPLATE}", default={})


class MirrorFile(LenientSection):
    """The configuration of a mirror."""

    version: Literal[1] = Field(default=1, description="Version of regsync's format; always 1")
    name: Text | None = key("Name of the mirror in reports, metrics and summaries; default: the file name without its suffix")
    store: Annotated[
        StoreSection | None,
        BeforeValidator(
            lambda value: {"url": value} if isinstance(value, str) else value, json_schema_input_type=Text | StoreSection
        ),
    ] = key("Content store")
    lock: Text | None = key("Path or URL of the lock file; default: NAME.lock.json next to NAME.yaml")
    concurrency: int | None = Field(
        default=None, ge=1, le=MAX_CONCURRENCY, description=f"Maximum parallel tasks; default: {CONCURRENCY}"
    )
    grain: Grain = Field(default="descriptor", description="The work of one task run: descriptor, or image, which costs less")
    registries: dict[str, MirrorRegistry] = key(
        "Settings by host[:port]; credentials also by host[:port]/namespace", default={}
    )
    creds: list[Creds] = key("Settings of registries in regsync's form", default=[])
    defaults: Defaults = Field(default=Defaults(), description="Default options of all entries")
    sync: list[SyncEntry] = key("Entries: sources, targets and selections of images", default=[])
    seed: SeedSection | None = key("Images that `dist seed` mirrors to registries")
