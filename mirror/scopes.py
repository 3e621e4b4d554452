"""The scopes of a walk: the flow runs of its units. A run without Prefect has one scope."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias, TypeVar

if TYPE_CHECKING:
    from prefect_dist.mirror.plan import PlannedImage
    from prefect_dist.transfer.walk_state import Admit, ImageState

ImageT_contra = TypeVar("ImageT_contra", contravariant=True)


class ImageScopes(Protocol[ImageT_contra]):
    """The flow runs of the units of a walk. Leaving the block ends the flow runs."""

    def divide(self, images: Sequence[ImageT_contra], admit: "Admit", /) -> None:
        """Set the scopes of images, and have `admit` add the images to the walk, at once or in parts."""

    def end_image(self, image: "ImageState", *, is_vetoed: bool = False) -> None:
        """Count a finished image."""

    def __enter__(self) -> Self:
        """Return the scopes."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object, /) -> None:
        """End the flow runs."""


FetchScopes: TypeAlias = "ImageScopes[ImageState]"
MirrorScopes: TypeAlias = "ImageScopes[tuple[ImageState, PlannedImage]]"
"""The scopes of a mirror. The plan of an image gives the number of its tasks."""


class RunScopes(Protocol):
    """Opens the scopes of the walks of a run."""

    def open_fetch(self) -> FetchScopes:
        """Return the scopes of a walk that fetches images."""

    def open_mirror(self, name: str, /) -> MirrorScopes:
        """Return the scopes of a walk that mirrors images. `name` is the name of the run."""
