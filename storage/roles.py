"""Credentials of an AWS role, for stores on S3.

STS issues credentials for about an hour, and a run may take longer. botocore's refreshable credentials request new credentials
before the old ones expire.
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
# Errors of AssumeRole requests. The request raises them, so the log record of aiobotocore with its traceback is dropped.
_FAILURES: WeakSet[Exception] = WeakSet()
# A run cannot ask for another code of an MFA device when the credentials expire.
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
    """Return a session with the credentials of a role. The first use of the session requests the credentials.

    `role` has the parameters of the AssumeRole request. `key` and `secret` sign the request, or without them the credentials of
    the profile or the environment. `region` and `config` configure the STS client.

    Raises:
        InvalidInput: no RoleArn, a role with an MFA code, or a key without a secret.
    """
    arn = role.get("RoleArn")
    if not arn:
        raise InvalidInput(
            "store option assume_role.RoleArn: missing, expected the ARN of a role: arn:aws:iam::123456789012:role/mirror"
        )
    if mfa := [name for name in _MFA if role.get(name)]:
        reason = "a run cannot ask for another code of the MFA device when its credentials expire"
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
    """A credential provider for botocore's sessions; see botocore.credentials.CredentialProvider."""

    METHOD = "assume-role"
    CANONICAL_NAME = None

    def __init__(self, role: Mapping[str, Any], caller: AioSession, create_client: Callable[..., Any]) -> None:
        # The default session name of prefect-aws.
        self._role = {"RoleSessionName": f"prefect-session-{uuid.uuid4().hex[:8]}", **role}
        self._caller, self._create_client = caller, create_client

    async def load(self) -> credentials.AioDeferredRefreshableCredentials:
        """Return credentials of the role. They are requested at their first use.

        Raises:
            InvalidInput: no credentials to sign the request with.
        """
        arn = self._role["RoleArn"]
        source = await self._caller.get_credentials()
        if source is None:
            raise InvalidInput(
                f"role {arn}: no credentials found to assume the role; expected a key, a profile, or a role of the machine"
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
    """Add the role to the message of a failed AssumeRole request, and prevent aiobotocore from logging the error."""
    error = getattr(exc, "response", {}).get("Error", {})
    error["Message"] = f"role {arn}: {error.get('Message') or exc}"
    _FAILURES.add(exc)
    _log.debug("role %s: %s", arn, exc)


def _is_unrelated(record: logging.LogRecord) -> bool:
    """Return True if a log record of aiobotocore is not about an AssumeRole request of this module."""
    return record.exc_info is None or record.exc_info[1] not in _FAILURES


credentials.logger.addFilter(_is_unrelated)
