"""Divides the images of a large fetch into parts."""

from collections.abc import Sequence

from prefect_dist.flows.parts import Parts
from prefect_dist.transfer.pool import Pool
from prefect_dist.transfer.walk_state import Admit, ImageState

# The most images of one flow run. An image for many platforms has about a hundred descriptors.
MOST_IMAGES = 50


class FetchParts(Parts):
    """The parts of a fetch of many images."""

    def __init__(self, pool: Pool) -> None:
        super().__init__("fetch-part", "fetch", pool)

    def divide(self, images: Sequence[ImageState], admit: Admit) -> None:
        """Divide many images into parts of `MOST_IMAGES` images. Fewer images stay in the flow run of the fetch."""
        for start in range(0, len(images) if len(images) > MOST_IMAGES else 0, MOST_IMAGES):
            self.add(images[start : start + MOST_IMAGES])
        admit(images)
