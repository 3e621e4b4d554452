"""Credentials of a role on AWS, for stores on S3.

STS issues them for an hour or so, and a run may last longer. So botocore's own refreshable credentials hold them: they request
new ones before the old ones expire.
"""

import logging
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from weakref import WeakSet

from aiobotocore import credentials
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession

from prefect_dist.ocispec.errors import InvalidInput

_log = logging.getLogger(__name__)
# Errors of requests for a role. If they count, they are raised; aiobotocore logs each one, with its traceback.
_FAILURES: WeakSet[Exception] = WeakSet()
# Nobody can enter another code of an MFA device when the credentials expire.
_MFA = ("SerialNumber", "TokenCode")


def assuming_session(
    role: Mapping[str, Any],
    *,
    key: str | None,
    secret: str | None,
    token: str | None,
    profile: str | None,
    region: str | None,
    config: Mapping[str, Any],
) -> AioSession:
    """Return a session whose credentials are those of a role.

    `role` has the parameters of the request AssumeRole. The request is signed with the key, or else with the credentials of the
    profile or the environment. `region` and `config` are those of the client of STS. Nothing is requested before the first use.

    Raises:
        InvalidInput: no RoleArn, a role that needs a code of an MFA device, or a key without its secret.
    """
    arn = role.get("RoleArn")
    if not arn:
        raise InvalidInput("store option assume_role: expected RoleArn in it, such as arn:aws:iam::123456789012:role/mirror")
    if mfa := [name for name in _MFA if role.get(name)]:
        reason = "no code of an MFA device can be entered when the credentials of a run expire"
        raise InvalidInput(f"role {arn}: {' and '.join(mfa)} cannot be used, since {reason}; use a role that needs no MFA")
    if bool(key) != bool(secret):
        raise InvalidInput(f"role {arn}: expected a key with its secret to assume it, got only one of them")
    caller, session = AioSession(profile=profile), AioSession(profile=profile)
    if key:
        caller.set_credentials(key, secret, token)
    create_client = partial(caller.create_client, region_name=region, config=AioConfig(**config))
    session.register_component(
        "credential_provider", credentials.AioCredentialResolver([_RoleProvider(role, caller, create_client)])
    )
    return session


class _RoleProvider:
    """A provider of credentials as botocore's sessions use it; see botocore.credentials.CredentialProvider."""

    METHOD = "assume-role"
    CANONICAL_NAME = None

    def __init__(self, role: Mapping[str, Any], caller: AioSession, create_client: Callable[..., Any]) -> None:
        # As prefect-aws names a session that has no name.
        self._role = {"RoleSessionName": f"prefect-session-{uuid.uuid4().hex[:8]}", **role}
        self._caller, self._create_client = caller, create_client

    async def load(self) -> credentials.AioDeferredRefreshableCredentials:
        """Return credentials of the role, which are requested when they are used.

        Raises:
            InvalidInput: there are no credentials to sign the request with.
        """
        arn = self._role["RoleArn"]
        source = await self._caller.get_credentials()
        if source is None:
            raise InvalidInput(
                f"role {arn}: found no credentials to assume it; expected a key, a profile, or a role of the machine"
            )
        fetcher = credentials.AioAssumeRoleCredentialFetcher(self._create_client, source, arn, extra_args=self._role)

        async def refresh() -> Any:
            try:
                return await fetcher.fetch_credentials()
            except Exception as exc:
                _name_role(exc, arn)
                raise

        return credentials.AioDeferredRefreshableCredentials(refresh_using=refresh, method=self.METHOD)


def _name_role(exc: Exception, arn: str) -> None:
    """Make the error of a request for a role name the role, and keep aiobotocore from logging it."""
    error = getattr(exc, "response", {}).get("Error", {})
    error["Message"] = f"role {arn}: {error.get('Message') or exc}"
    _FAILURES.add(exc)
    _log.debug("role %s: %s", arn, exc)


def _is_of_others(record: logging.LogRecord) -> bool:
    """Return whether a record of aiobotocore is not about a request for a role that is made here."""
    return record.exc_info is None or record.exc_info[1] not in _FAILURES


credentials.logger.addFilter(_is_of_others)
