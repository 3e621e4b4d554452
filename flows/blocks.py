"""Block types: named settings that Prefect stores for flows, with their secrets encrypted.

A Prefect server registers the types at its start, through the entry point group `prefect.collections` in pyproject.toml.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound
from prefect.types import SecretDict
from pydantic import Field, SecretStr

from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.remotes import Credentials, Origin
from prefect_dist.storage.options import merge_options

B = TypeVar("B", bound=Block)
# The block type of prefect-aws, and its fields for each option of s3fs.
_AWS = "aws-credentials"
_AWS_OPTIONS = {
    "key": "aws_access_key_id",
    "secret": "aws_secret_access_key",
    "token": "aws_session_token",
    "profile": "profile_name",
}


class ContentStore(Block):
    """The location of a content store, with the options and secrets of its file system."""

    _block_type_name = "Content Store"
    _block_type_slug = "content-store"
    _description = "A content store: a path or fsspec URL, with the options and secrets of its file system."

    url: str = Field(description="A path or fsspec URL, such as s3://bucket/prefix")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the file system without secrets, such as endpoint_url"
    )
    secrets: SecretDict = Field(
        default_factory=lambda: SecretDict({}), description="Secret options of the file system, such as key and secret"
    )
    credentials: str | None = Field(
        default=None, description="Name of an AWS Credentials block (prefect-aws), in place of secrets"
    )


class MirrorConfiguration(Block):
    """The configuration of a mirror, for runs on any machine. Users read and change it in Prefect's UI."""

    _block_type_name = "Mirror Configuration"
    _block_type_slug = "mirror-configuration"
    _description = "The configuration of a mirror in YAML, without secrets."

    text: str = Field(title="Configuration", description="YAML; secrets are references: env, file or block")


class RegistryCredentials(Block):
    """The credentials for a registry."""

    _block_type_name = "Registry Credentials"
    _block_type_slug = "registry-credentials"
    _description = "User and password, or an identity token, for a container registry or one of its namespaces."

    registry: str = Field(
        description="host[:port] as in references, such as ghcr.io; or host[:port]/namespace, such as ghcr.io/team"
    )
    username: str = Field(default="", description="User name; optional with an identity token")
    password: SecretStr = Field(default=SecretStr(""), description="Password or access token")
    identity_token: SecretStr | None = Field(default=None, description="OAuth2 refresh token, in place of a password")


class PrefectBlocks:
    """Reads the blocks of the Prefect API of this process."""

    def read_store(self, name: str, options: Mapping[str, Any], /) -> tuple[str, dict[str, Any]]:
        """Return the URL and the options of the store in a Content Store block. Secrets of the block take precedence."""
        block = _load_block(ContentStore, name, "Content Store")
        known = merge_options(_aws_options(block.credentials) if block.credentials else {}, block.options)
        return block.url, merge_options(merge_options(known, options), block.secrets.get_secret_value())

    def read_credentials(self, names: Iterable[str], /) -> dict[str, Credentials]:
        """Return the credentials in blocks, by registry.

        NAME is the name of a Registry Credentials block. TYPE/NAME is the name of a block of another type with the fields
        `username`, `password` and `registry_url`, such as prefect-docker's.
        """
        found, usual = {}, RegistryCredentials.get_block_type_slug()
        with get_client(sync_client=True) as client:
            for name in names:
                registry, credentials = _credentials(_data(client, name, usual), name)
                found[registry] = credentials
        return found

    def read_configuration(self, name: str, /) -> str:
        """Return the YAML text in a Mirror Configuration block."""
        return _load_block(MirrorConfiguration, name, "Mirror Configuration").text


def _load_block(kind: type[B], name: str, title: str) -> B:
    try:
        return cast("B", kind.load(name))
    except ValueError as exc:
        raise InvalidInput(f"{title} block {name!r} not found; create it under Blocks, or pass the name of another") from exc


def _data(client: SyncPrefectClient, block: str, usual: str) -> Mapping[str, Any]:
    """Return the data of the block TYPE/NAME, or NAME of the usual type. The class of the block need not be installed."""
    slug, _, name = block.rpartition("/")
    try:
        return client.read_block_document_by_name(name, slug or usual, include_secrets=True).data
    except ObjectNotFound as exc:
        raise InvalidInput(
            f"credentials block {block!r} not found; create it under Blocks, or pass NAME or TYPE/NAME of another block"
        ) from exc


def _credentials(data: Mapping[str, Any], block: str) -> tuple[str, Credentials]:
    registry = data.get("registry") or data.get("registry_url")
    if not registry or not (data.get("password") or data.get("identity_token")):
        raise InvalidInput(f"credentials block {block!r}: expected a registry, and a password or identity token")
    origin = Origin(f"Prefect block {block}", "correct them there")
    return registry, Credentials(data.get("username") or "", data.get("password") or "", data.get("identity_token"), origin)


def _aws_options(block: str) -> dict[str, Any]:
    """Return s3fs's options for the credentials in a block of prefect-aws.

    Without keys in the block, s3fs reads credentials from the environment, such as the role of an instance. For a role to
    assume, the option `assume_role` of `storage.s3` has the parameters of the request.
    """
    with get_client(sync_client=True) as client:
        data = _data(client, block, _AWS)
    options = {name: data[key] for name, key in _AWS_OPTIONS.items() if data.get(key)}
    if not options and block.rpartition("/")[0] not in ("", _AWS):
        raise InvalidInput(f"credentials block {block!r}: expected a block with keys or a profile, such as AWS Credentials")
    if arn := data.get("assume_role_arn"):
        parameters = data.get("assume_role_kwargs") or {}
        options["assume_role"] = {name: value for name, value in parameters.items() if value is not None} | {"RoleArn": arn}
    return options | _aws_client_options(data.get("aws_client_parameters") or {}, data.get("region_name"))


def _aws_client_options(parameters: Mapping[str, Any], region: str | None) -> dict[str, Any]:
    """Return s3fs's options for the client parameters of a block of prefect-aws."""
    # With verify False, prefect-aws also ignores the path.
    verify = False if parameters.get("verify") is False else parameters.get("verify_cert_path") or parameters.get("verify")
    client = {"region_name": region, "api_version": parameters.get("api_version"), "verify": verify}
    options: dict[str, Any] = {
        "endpoint_url": parameters.get("endpoint_url"),
        "use_ssl": False if parameters.get("use_ssl") is False else None,
        "client_kwargs": {name: value for name, value in client.items() if value is not None},
        "config_kwargs": parameters.get("config"),
    }
    return {name: value for name, value in options.items() if value not in (None, {})}
