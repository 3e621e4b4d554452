"""The sections of a mirror's configuration, as pydantic checks them.

Keys are named as in regsync's files (version 1) where those have them, and mean the same; such a file loads as it is. What they
say is turned into values of ours by `mirror.config`.
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from prefect_dist.mirror.hosts_file import BLOB_CHUNK, BLOB_MAX, CONCURRENCY, MAX_CONCURRENCY, Registry
from prefect_dist.mirror.naming import Rename
from prefect_dist.mirror.selection import compile_pattern
from prefect_dist.mirror.semver import Range
from prefect_dist.mirror.validation import Flag, Host, LenientSection, Seconds, Text, no_effect, valid_by
from prefect_dist.ocispec.platform import Platform


def _date(value: object) -> object:
    """Return a date, or a time with its zone; without one it is UTC."""
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        raise ValueError("expected a date such as 2026-01-31, or a time such as 2026-01-31T12:00:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _entry_point(value: str) -> str:
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
        return value
    raise ValueError("expected a callable, as module:function")


def _text_or_nothing(value: object) -> object:
    return "" if value is None else value


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) else value


_REFERRED = 'may be {{env "NAME"}} or {{file "PATH"}}'

Regex = Annotated[Text, valid_by(compile_pattern)]
PlatformName = Annotated[Text, valid_by(Platform.parse)]
Date = Annotated[datetime, BeforeValidator(_date, json_schema_input_type=str)]


TextOrNothing = Annotated[Text, BeforeValidator(_text_or_nothing, json_schema_input_type=str | float | None)]


class Created(LenientSection):
    """A window of dates; an image whose date is unknown is in it."""

    after: Date | None = Field(default=None, description="Made at this date (UTC) or time, or later")
    within: Seconds | None = Field(default=None, description="Made at most so long ago, such as 90d")


class LatestTags(LenientSection):
    """The newest tags that are versions."""

    count: int = Field(ge=1, description="So many of each group: tags with as many numbers and the same text around them")
    per: Literal["all", "major", "minor"] = Field(default="all", description="A group for each major, or each minor version")


class TagFilter(LenientSection):
    """Which tags of a repository; a tag has to pass all that is said."""

    allow: list[Regex] = Field(default=[], description="Regular expressions, one of which has to match the whole tag")
    deny: list[Regex] = Field(default=[], description="Regular expressions, none of which may match the whole tag")
    semver_range: list[Annotated[Text, valid_by(Range.parse)]] = Field(
        default=[], description="Ranges of versions, one of which the tag has to be in, such as '>=1.2 <2.0'; = > < >= <= ~ ^"
    )
    latest: LatestTags | None = Field(default=None, description="Of these, the newest versions alone")


class Tags(TagFilter):
    """Which tags, and of their images those of a time."""

    created: Created | None = Field(default=None, description="Of all that are chosen, images made in this time alone")


class Repositories(LenientSection):
    """Which repositories of a registry."""

    allow: list[Regex] = Field(default=[], description="Regular expressions, one of which has to match the whole name")
    deny: list[Regex] = Field(default=[], description="Regular expressions, none of which may match the whole name")


class RenameRule(LenientSection):
    """What paths at a target become."""

    match: Regex = Field(description="A regular expression for all of repository:tag, as it would be at the target")
    to: Text = Field(description="The repository:tag to be there instead; $1 or ${name} is a group of the expression")

    @model_validator(mode="after")
    def _groups(self) -> "RenameRule":
        self.rule()
        return self

    def rule(self) -> Rename:
        """The same as a value of ours."""
        return Rename(match=self.match, to=self.to)


class GateSection(LenientSection):
    """Who is asked before an image is published."""

    command: list[Text] = Field(default=[], description="A program and its arguments")
    python: Annotated[Text, AfterValidator(_entry_point)] | None = Field(
        default=None, description="A callable, as module:function"
    )
    timeout: Seconds = Field(default=300, description="How long it may take")
    existing: Flag = Field(
        default=False, description="Also ask, in each run, about images that are at their targets already; a veto is reported"
    )

    @model_validator(mode="after")
    def _either(self) -> "GateSection":
        if bool(self.command) == bool(self.python):
            raise ValueError("expected either command or python")
        return self


class PruneSection(LenientSection):
    """When tags are removed that the mirror created and that are not wanted any more."""

    after: Seconds = Field(default=7 * 86400, description="So long after it was first seen")
    most: int = Field(
        default=20,
        ge=1,
        description="Only while fewer are removed in the run, by all entries together; the longest unwanted first",
    )


class ReferrerFilterSection(LenientSection):
    """A condition that a listed referrer has to meet."""

    artifact_type: Text | None = Field(default=None, description="The artifact type of the referrer; any without this")
    annotations: dict[str, TextOrNothing] = Field(
        default={}, description="Annotations that the referrer has, all of them; an empty value matches any value"
    )


class RateLimit(LenientSection):
    """regsync's pause before a quota is used up."""

    min: int = Field(default=0, description="Requests that have to be left")
    retry: Seconds = Field(default=0, description="How long to wait otherwise")


class Options(LenientSection):
    """What may be said of an entry, or as a default of all."""

    backup: Text | None = Field(
        default=None, description="Tag or reference for what is overwritten, such as backup-{{.Ref.Tag}}; .Ref is the target"
    )
    interval: Seconds | None = Field(default=None, description="How often; starts no run: a warning shows how")
    schedule: Text | None = Field(
        default=None, description="When, as cron has it; starts no run: a warning shows how; goes before interval"
    )
    digest_tags: Flag | None = Field(
        default=None,
        description="Also cosign's digest tags: sha256-….sig, .att, .sbom; included in referrers, unless this is false",
    )
    referrers: Flag = Field(
        default=False,
        description="Also signatures, bills of materials and attestations: manifests that refer to the image, and digest tags",
    )
    referrer_filters: list[ReferrerFilterSection] = Field(
        default=[],
        description="With referrers, only listed referrers that match one of these; digest tags are not filtered",
    )
    platforms: list[PlatformName] | None = Field(
        default=None, description="These of an index alone, such as linux/arm64; otherwise all"
    )
    rewrite_index: Flag = Field(
        default=False,
        description="Make an index of these platforms alone, which has another digest; otherwise it stays as it is",
    )
    gate: GateSection | None = Field(default=None, description="Who is asked before an image is published")
    prune: PruneSection | None = Field(
        default=None, description="Remove tags that this mirror made and that are wanted no longer"
    )
    immutable_tags: list[Regex] = Field(
        default=[],
        description="Regular expressions for tags that never change: once mirrored, they are looked up at the target only",
    )
    trust_lock: Flag = Field(
        default=False, description="For immutableTags, trust the lock file: send no request, and miss what changed at a target"
    )
    rename: list[RenameRule] = Field(default=[], description="The first rule that matches is applied to the name at a target")

    ratelimit: RateLimit | None = no_effect(
        "a plan says what it needs of a quota, and requests wait as long as a registry wants"
    )
    fast_check: Flag | None = no_effect("what a target has is never sent again")
    fast_copy: Flag | None = no_effect("what a target has is never sent again")
    force_recursive: Flag | None = no_effect("`dist check --repair` sends what is missing")
    include_external: Flag | None = no_effect("layers that are not to be distributed stay where their urls lead")
    media_types: list[Text] | None = no_effect("images of all media types are mirrored")
    hooks: dict[str, Any] | None = no_effect("nor has it with regsync; `gate` asks before an image is published")
    referrer_source: Text | None = no_effect("referrers are taken from the repository of their image")
    referrer_target: Text | None = no_effect("referrers go to the repository of their image")
    referrer_slow: Flag | None = no_effect("the referrers API is asked, or the fallback tag")


class Defaults(Options):
    """What holds for all entries that do not say otherwise, and what is regsync's for the whole run."""

    parallel: int | None = Field(default=None, ge=0, description="regsync's name for concurrency; more than 64 counts as 64")
    blob_limit: int | None = no_effect("manifests have one bound, blobs none")
    cache_count: int | None = no_effect("a run keeps what it was told")
    cache_time: Text | None = no_effect("a run keeps what it was told")
    skip_docker_config: Flag | None = no_effect("credentials that are configured go before those of docker login")
    user_agent: Text | None = no_effect("the program says what it is")


class SyncEntry(Options):
    """What is mirrored from where to where."""

    source: Text = Field(description="Registry, repository or image, as type says; short names as docker has them")
    target: Text | None = Field(default=None, description="Likewise; may be a template")
    targets: list[Text] = Field(default=[], description="Several of these")
    type: Literal["registry", "repository", "image"] = Field(description="What source and target are")
    tags: Tags | None = Field(default=None, description="Which tags; all, if nothing is said")
    tag_sets: list[TagFilter] = Field(default=[], description="Which tags, in several ways: a tag has to pass one of them")
    repos: Repositories | None = Field(default=None, description="Which repositories of a registry")
    platform: PlatformName | None = Field(
        default=None, description="Instead of an index its image for this platform, os/architecture[/variant]"
    )

    @model_validator(mode="after")
    def _one_way(self) -> "SyncEntry":
        if bool(self.target) == bool(self.targets):
            raise ValueError("expected either target or targets")
        return self


class SeedSection(Options):
    """What is brought to registries in bulk, each image under its own repository and tag."""

    images: list[Text] = Field(default=[], description="References of images")
    file: Text | None = Field(default=None, alias="list", description="A file of references, one in a line; # begins a comment")
    to: Annotated[list[Text], BeforeValidator(_one_or_more, json_schema_input_type=Text | list[Text])] = Field(
        min_length=1, description="Registries, each with or without a path that comes before the repositories"
    )


class MirrorRegistry(LenientSection, Registry):
    """How one registry is reached, and who we are there."""

    user: Text | None = Field(default=None, repr=False, description=f"The user; {_REFERRED}")
    pass_: Text | None = Field(default=None, alias="pass", repr=False, description=f"Password; {_REFERRED}")
    token: Text | None = Field(default=None, repr=False, description=f"Identity token (OAuth2), instead; {_REFERRED}")
    block: Text | None = Field(
        default=None, description="Block of Prefect's that has user and password, instead: NAME or TYPE/NAME"
    )


class Creds(LenientSection):
    """A registry as regsync says it: the same as in `registries`, with its name within."""

    registry: Text = Field(description="host[:port], as it stands in references; may be a template")
    hostname: Host | None = Field(default=None, description="Where it is, if not where its name says: host[:port]")
    user: Text | None = Field(default=None, repr=False, description=f"The user; {_REFERRED}")
    pass_: Text | None = Field(default=None, alias="pass", repr=False, description=f"Password; {_REFERRED}")
    token: Text | None = Field(default=None, repr=False, description=f"Identity token (OAuth2), instead; {_REFERRED}")
    tls: Annotated[Literal["", "enabled", "insecure", "disabled"], BeforeValidator(lambda said: str(said).lower())] = Field(
        default="", description="https, https without looking at certificates, http"
    )
    regcert: Text | None = Field(default=None, repr=False, description="Authorities to trust beside the system's, as PEM")
    client_cert: Text | None = Field(default=None, repr=False, description="Our certificate, as PEM")
    client_key: Text | None = Field(default=None, repr=False, description="Its key, as PEM")
    mirrors: list[Host] = Field(default=[], description="Registries that are asked before it; higher priority comes first")
    priority: int = Field(default=0, ge=0, description="Where it comes among the mirrors of others")
    path_prefix: str = Field(default="", description="Comes before the names of repositories")
    req_per_sec: float = Field(default=0, ge=0, description="Requests begun in a second; 0 is no limit")
    req_concurrent: int = Field(default=0, ge=0, description="Requests under way at once; 0 is no limit")
    api_opts: dict[str, Any] = Field(default={}, description='Of these, disableHead: "true" has an effect')

    blob_chunk: int = Field(default=0, ge=0, description=f"{BLOB_CHUNK}, or with 0")
    blob_max: int = Field(default=0, ge=-1, description=f"{BLOB_MAX}; 0 is as nothing")

    cred_helper: Text | None = no_effect("name it under credHelpers in docker's config.json")
    cred_expire: Text | None = no_effect("helpers are named in docker's config.json")
    cred_host: Text | None = no_effect("helpers are named in docker's config.json")
    repo_auth: Flag | None = no_effect("tokens are asked for by repository")
    api: Text | None = no_effect("there is one API")
    scheme: Text | None = no_effect("tls says it")


class StoreSection(LenientSection):
    """Where images are kept on their way."""

    url: Text = Field(description="A path, an fsspec URL such as s3://bucket/prefix, or block:NAME")
    options: dict[str, Any] = Field(
        default={}, description='Options of its file system; secrets may be {{env "NAME"}} or {{file "PATH"}}'
    )


def _store(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


class MirrorFile(LenientSection):
    """A mirror's configuration."""

    version: Literal[1] = Field(default=1, description="regsync's: there is no other")
    name: Text | None = Field(
        default=None, description="What runs are called; the file's name without its suffix, if nothing is said"
    )
    store: Annotated[StoreSection | None, BeforeValidator(_store, json_schema_input_type=Text | StoreSection)] = Field(
        default=None, description="Where images are kept on their way"
    )
    lock: Text | None = Field(default=None, description="The lock file; beside this file, NAME.lock.json, if nothing is said")
    concurrency: int | None = Field(
        default=None, ge=1, le=MAX_CONCURRENCY, description=f"How many things are done at once, {CONCURRENCY} by default"
    )
    registries: dict[str, MirrorRegistry] = Field(
        default={}, description="By host[:port], or host[:port]/namespace for credentials alone"
    )
    creds: list[Creds] = Field(default=[], description="The same as regsync has it")
    defaults: Defaults = Field(default=Defaults(), description="What holds for all entries that do not say otherwise")
    sync: list[SyncEntry] = Field(default=[], description="What is mirrored from where to where")
    seed: SeedSection | None = Field(default=None, description="What `dist seed` brings to registries in bulk")
