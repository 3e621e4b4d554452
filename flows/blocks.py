"""Blocks: named settings that Prefect keeps for flows, with their secrets encrypted.

A Prefect server registers the types when it starts, through the entry point group `prefect.collections` in pyproject.toml.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, cast

from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound
from prefect.types import SecretDict
from pydantic import Field, SecretStr

from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.remotes import Credentials, Origin
from prefect_dist.storage.options import merge_options, refuse_secrets

_PREFIX = "block:"
# prefect-aws's, and what its fields are called by s3fs.
_AWS = "aws-credentials"
_AWS_OPTIONS = {
    "key": "aws_access_key_id",
    "secret": "aws_secret_access_key",
    "token": "aws_session_token",
    "profile": "profile_name",
}


class ContentStore(Block):
    """Where a content store is, and what its file system needs to be let in."""

    _block_type_name = "Content Store"
    _block_type_slug = "content-store"
    _description = "Where images are stored: a path or fsspec URL, with the options and secrets of its file system."

    url: str = Field(description="A path or fsspec URL, such as s3://bucket/prefix")
    options: dict[str, Any] = Field(
        default_factory=dict, description="fsspec's options that are no secrets, such as endpoint_url"
    )
    secrets: SecretDict = Field(
        default_factory=lambda: SecretDict({}), description="fsspec's options that are, such as key, secret"
    )
    credentials: str | None = Field(
        default=None, description="Instead of secrets: a block of type AWS Credentials (prefect-aws), by name"
    )


class MirrorConfiguration(Block):
    """What is mirrored from where to where, for runs on any machine; people read and change it in Prefect's UI."""

    _block_type_name = "Mirror Configuration"
    _block_type_slug = "mirror-configuration"
    _description = "What is mirrored from where to where: the YAML of a configuration, without secrets."

    text: str = Field(title="Configuration", description="YAML; what is secret is named there, as env, file or block")


class RegistryCredentials(Block):
    """Who we are to a registry."""

    _block_type_name = "Registry Credentials"
    _block_type_slug = "registry-credentials"
    _description = "User and password, or an identity token, for a container registry or a namespace of it."

    registry: str = Field(description="host[:port] as in references, such as ghcr.io, or with a namespace: ghcr.io/team")
    username: str = Field(default="", description="The user; not needed with an identity token")
    password: SecretStr = Field(default=SecretStr(""), description="Password or access token")
    identity_token: SecretStr | None = Field(default=None, description="An OAuth2 refresh token, instead of a password")


def credentials_in(blocks: Iterable[str]) -> dict[str, Credentials]:
    """The credentials in blocks, by registry.

    A block is named NAME, for one of type Registry Credentials, or TYPE/NAME as Prefect shows it for one of another type that
    has `username`, `password` and `registry_url`, such as prefect-docker's.

    Raises:
        InvalidInput: no such block, or one without these.
    """
    found = {}
    with get_client(sync_client=True) as client:
        for block in blocks:
            registry, credentials = _credentials(_data(client, block, RegistryCredentials.get_block_type_slug()), block)
            found[registry] = credentials
    return found


def configuration(config: str) -> str | None:
    """The text of a mirror's configuration in `block:NAME`; None where that names no block.

    Raises:
        InvalidInput: no such block.
    """
    if not config.startswith(_PREFIX):
        return None
    try:
        block = cast("MirrorConfiguration", MirrorConfiguration.load(config.removeprefix(_PREFIX)))
    except ValueError as exc:
        raise InvalidInput(f"configuration {config}: there is no such block of type Mirror Configuration") from exc
    return block.text


def _data(client: SyncPrefectClient, block: str, usual: str) -> Mapping[str, Any]:
    """What is in the block TYPE/NAME, or NAME of the usual type; read without its class, which need not be installed here."""
    slug, _, name = block.rpartition("/")
    try:
        return client.read_block_document_by_name(name, slug or usual, include_secrets=True).data
    except ObjectNotFound as exc:
        raise InvalidInput(f"credentials {block}: there is no such block; expected NAME or TYPE/NAME") from exc


def _credentials(data: Mapping[str, Any], block: str) -> tuple[str, Credentials]:
    registry = data.get("registry") or data.get("registry_url")
    if not registry or not (data.get("password") or data.get("identity_token")):
        raise InvalidInput(f"credentials {block}: expected a block with a registry, a user and a password or identity token")
    origin = Origin(f"Prefect's block {block}", "correct them there")
    return registry, Credentials(data.get("username") or "", data.get("password") or "", data.get("identity_token"), origin)


def locate_store(
    store: str, options: dict[str, Any], *, configured: Mapping[str, Any] = MappingProxyType({})
) -> tuple[str, dict[str, Any]]:
    """Return the path or URL of a flow's parameter `store`, and all options of its file system.

    `store` is a path or URL itself, or `block:NAME`. `options` are a parameter, so they may hold no secrets; the
    `configured` ones may, and are used below them.

    Raises:
        InvalidInput: a secret in `options`, no such block, or a block with options that cannot be used.
    """
    refuse_secrets(options)
    chosen = merge_options(configured, options)
    if not store.startswith(_PREFIX):
        return store, chosen
    try:
        block = cast("ContentStore", ContentStore.load(store.removeprefix(_PREFIX)))
    except ValueError as exc:
        raise InvalidInput(f"store {store}: there is no such block of type Content Store") from exc
    known = merge_options(_aws_options(block.credentials) if block.credentials else {}, block.options)
    return block.url, merge_options(merge_options(known, chosen), block.secrets.get_secret_value())


def _aws_options(block: str) -> dict[str, Any]:
    """Return s3fs's options for the credentials in a block of prefect-aws.

    A block without keys leaves credentials to the environment, such as the role of an instance. A role that the block assumes
    is passed as the parameters of the request, in the option `assume_role` of `storage.s3`.
    """
    with get_client(sync_client=True) as client:
        data = _data(client, block, _AWS)
    options = {name: data[key] for name, key in _AWS_OPTIONS.items() if data.get(key)}
    if not options and block.rpartition("/")[0] not in ("", _AWS):
        raise InvalidInput(f"credentials {block}: expected a block with keys or a profile, such as AWS Credentials")
    if arn := data.get("assume_role_arn"):
        parameters = data.get("assume_role_kwargs") or {}
        options["assume_role"] = {name: value for name, value in parameters.items() if value is not None} | {"RoleArn": arn}
    return options | _aws_client_options(data.get("aws_client_parameters") or {}, data.get("region_name"))


def _aws_client_options(parameters: Mapping[str, Any], region: str | None) -> dict[str, Any]:
    """Return s3fs's options for the client parameters of a block of prefect-aws."""
    # With verify False, prefect-aws ignores the path, too.
    verify = False if parameters.get("verify") is False else parameters.get("verify_cert_path") or parameters.get("verify")
    client = {"region_name": region, "api_version": parameters.get("api_version"), "verify": verify}
    options: dict[str, Any] = {
        "endpoint_url": parameters.get("endpoint_url"),
        "use_ssl": False if parameters.get("use_ssl") is False else None,
        "client_kwargs": {name: value for name, value in client.items() if value is not None},
        "config_kwargs": parameters.get("config"),
    }
    return {name: value for name, value in options.items() if value not in (None, {})}
