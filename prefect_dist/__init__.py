"""Fetch, verify, store and mirror OCI and Docker images as Prefect runs.

The package imports a name at its first use. So the import of the package is quick and does not import Prefect.
docs/how-to/library.md shows how to use the names.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_dist.flows.blocks import ContentStore, MirrorConfiguration, RegistryCredentials
    from prefect_dist.flows.check import check
    from prefect_dist.flows.copy import copy
    from prefect_dist.flows.fetch import fetch
    from prefect_dist.flows.gc import gc
    from prefect_dist.flows.mirror import mirror
    from prefect_dist.flows.own_session import session
    from prefect_dist.flows.parameters import Network
    from prefect_dist.flows.pull import pull
    from prefect_dist.flows.push import push
    from prefect_dist.flows.seed import seed
    from prefect_dist.flows.verify import verify
    from prefect_dist.mirror.report import (
        AuditRow,
        BlobRow,
        LeftoverRow,
        NameRow,
        OrphanRow,
        RunError,
        RunReport,
        TargetRow,
        UnpackRow,
    )
    from prefect_dist.mirror.run_result import RunFailed, RunStopped, RunSummary
    from prefect_dist.ocispec.descriptor import Descriptor
    from prefect_dist.ocispec.digest import Digest
    from prefect_dist.ocispec.errors import (
        AlreadyExists,
        Busy,
        Conflict,
        Corrupt,
        Denied,
        DistError,
        InvalidInput,
        Mistakes,
        NotFound,
        Unavailable,
        Unsupported,
    )
    from prefect_dist.ocispec.platform import Platform
    from prefect_dist.ocispec.reference import Reference
    from prefect_dist.transfer.cancellation import Stopped
    from prefect_dist.transfer.image_report import Failure, ImageReport
    from prefect_dist.transfer.session import Session

    __version__: str

__all__ = [
    "AlreadyExists",
    "AuditRow",
    "BlobRow",
    "Busy",
    "Conflict",
    "ContentStore",
    "Corrupt",
    "Denied",
    "Descriptor",
    "Digest",
    "DistError",
    "Failure",
    "ImageReport",
    "InvalidInput",
    "LeftoverRow",
    "MirrorConfiguration",
    "Mistakes",
    "NameRow",
    "Network",
    "NotFound",
    "OrphanRow",
    "Platform",
    "Reference",
    "RegistryCredentials",
    "RunError",
    "RunFailed",
    "RunReport",
    "RunStopped",
    "RunSummary",
    "Session",
    "Stopped",
    "TargetRow",
    "Unavailable",
    "UnpackRow",
    "Unsupported",
    "__version__",
    "check",
    "copy",
    "fetch",
    "gc",
    "mirror",
    "pull",
    "push",
    "seed",
    "session",
    "verify",
]

# The module of each name, as in the imports above.
_MODULES = {
    "flows.blocks": ("ContentStore", "MirrorConfiguration", "RegistryCredentials"),
    "flows.check": ("check",),
    "flows.copy": ("copy",),
    "flows.fetch": ("fetch",),
    "flows.gc": ("gc",),
    "flows.mirror": ("mirror",),
    "flows.own_session": ("session",),
    "flows.parameters": ("Network",),
    "flows.pull": ("pull",),
    "flows.push": ("push",),
    "flows.seed": ("seed",),
    "flows.verify": ("verify",),
    "mirror.report": (
        "AuditRow",
        "BlobRow",
        "LeftoverRow",
        "NameRow",
        "OrphanRow",
        "RunError",
        "RunReport",
        "TargetRow",
        "UnpackRow",
    ),
    "mirror.run_result": ("RunFailed", "RunStopped", "RunSummary"),
    "ocispec.descriptor": ("Descriptor",),
    "ocispec.digest": ("Digest",),
    "ocispec.errors": (
        "AlreadyExists",
        "Busy",
        "Conflict",
        "Corrupt",
        "Denied",
        "DistError",
        "InvalidInput",
        "Mistakes",
        "NotFound",
        "Unavailable",
        "Unsupported",
    ),
    "ocispec.platform": ("Platform",),
    "ocispec.reference": ("Reference",),
    "transfer.cancellation": ("Stopped",),
    "transfer.image_report": ("Failure", "ImageReport"),
    "transfer.session": ("Session",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

# `mirror` is a flow and a package. Python binds the name to the package when Python loads the package. Python loads the
# package here, and only once. So later imports in any order find the flow under this name.
import_module(f"{__name__}.mirror")
globals().pop("mirror")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - slow, and rarely needed

        value: Any = version("prefect-dist")
    elif name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
