"""Tasks without labels: a superpixel of an image is the target, two views of the image support and query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from skimage.segmentation import felzenszwalb, slic
from torch import Tensor

from medmeta.episodes.augment import Augment, apply, draw
from medmeta.episodes.examples import Episode, EpisodeError, Examples
from medmeta.episodes.source import generator_of
from medmeta.errors import nearest

METHODS = ("felzenszwalb", "slic")
SUPPORT_VIEW = Augment(flip=False, gain=0.1, bias=0.1, rotate=0.0, scale=0.0)
QUERY_VIEW = Augment(flip=False, gain=0.3, bias=0.2, rotate=15.0, scale=0.15)
CLASSES = ("background", "superpixel")


def superpixels(image: Tensor, *, method: str = "felzenszwalb", size: int = 100) -> Tensor:
    """Cut an image into pieces of like intensity.

    Args:
        image: ``(channel, *voxel)``.
        method: ``felzenszwalb`` (Felzenszwalb & Huttenlocher 2004), 2D only, as in Ouyang et al. 2020, or
            ``slic`` (Achanta et al. 2012), any number of axes.
        size: fewest voxels of a piece (felzenszwalb), or about how many it has (slic).

    Returns:
        ``(*voxel)`` number of the piece of each voxel, from 0.

    Raises:
        EpisodeError: for an unknown method, or felzenszwalb in 3D.

    Example:
        >>> image = torch.zeros(1, 16, 16)
        >>> image[:, :, 8:] = 1
        >>> superpixels(image, size=20).unique().tolist()
        [0, 1]
    """
    if method not in METHODS:
        raise EpisodeError("a known way to superpixels", found=repr(method), cure=nearest(method, METHODS))
    if method == "felzenszwalb" and image.ndim != 3:
        raise EpisodeError(
            "2D images for felzenszwalb", found=f"{image.ndim - 1} axes", cure="Take method='slic'."
        )
    low, high = image.amin(), image.amax()
    plain = ((image - low) / (high - low).clamp(min=1e-6)).movedim(0, -1).double().numpy()
    if method == "felzenszwalb":
        pieces = felzenszwalb(plain, scale=1, sigma=0.8, min_size=size, channel_axis=-1)
    else:
        count = max(2, int(np.prod(plain.shape[:-1])) // size)
        pieces = slic(plain, n_segments=count, compactness=0.1, sigma=1, start_label=0, channel_axis=-1)
    return torch.from_numpy(np.ascontiguousarray(pieces)).long()


@dataclass(frozen=True)
class SuperpixelSource:
    """Training episodes by number: one superpixel of one image, one view of it to learn from, one to judge.

    After Ouyang et al. 2020 (self-supervision with superpixels, section 3.2): support and query are the same
    image, one of them moved and its intensities changed, so that a learner must find a region again by its
    looks and surroundings. Nobody's label is used.

    Args:
        images: each ``(channel, *voxel)``, of one shape.
        seed: of the stream.
        method, size: of :func:`superpixels`; made once an image, when first drawn.
        share: fewest and most of an image that a target may be.
        support, query: how far each side's view may be changed.

    Raises:
        EpisodeError: where there is no image, or none with a superpixel of such a share.

    Example:
        >>> source = SuperpixelSource([torch.rand(1, 32, 32)], size=20)
        >>> source[3].query.label.shape
        torch.Size([1, 32, 32])
    """

    images: Sequence[Tensor]
    seed: int = 0
    method: str = "felzenszwalb"
    size: int = 100
    share: tuple[float, float] = (0.002, 0.25)
    support: Augment = SUPPORT_VIEW
    query: Augment = QUERY_VIEW
    _known: dict[int, list[Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.images:
            raise EpisodeError("one image or more", found="none", cure="Give training images.")

    def targets(self, number: int) -> list[Tensor]:
        """The masks ``(*voxel)`` that may be targets in one image; maybe none."""
        if number not in self._known:
            image = self.images[number]
            pieces = superpixels(image, method=self.method, size=self.size)
            counts = torch.bincount(pieces.flatten()) / pieces.numel()
            dark = image.mean(0) <= image.amin() + 1e-3 * (image.amax() - image.amin())  # air round the body
            self._known[number] = [
                pieces == p
                for p, part in enumerate(counts.tolist())
                if self.share[0] <= part <= self.share[1] and float(dark[pieces == p].float().mean()) < 0.5
            ]
        return self._known[number]

    def __getitem__(self, index: int) -> Episode:
        """Episode number ``index``: the same for the same seed, wherever it is asked for."""
        generator = generator_of(self.seed, index)
        order = torch.randperm(len(self.images), generator=generator).tolist()
        for number in order:
            targets = self.targets(number)
            if targets:
                return self._episode(self.images[number], targets, generator)
        raise EpisodeError(
            f"a superpixel of {self.share[0]:.1%} to {self.share[1]:.1%} of an image",
            found=f"none in {len(self.images)} image(s)",
            cure="Change size or share.",
        )

    def _episode(self, image: Tensor, targets: list[Tensor], generator: torch.Generator) -> Episode:
        mask = targets[int(torch.randint(len(targets), (1,), generator=generator))]
        still = Examples(image[None].float(), mask[None].long(), CLASSES)
        axes = image.ndim - 1
        views = []
        for augment in (self.support, self.query):
            drawn = draw(augment, axes, generator)
            view = apply(drawn, still)
            views.append(view if bool(view.label.any()) else still)
        if float(torch.rand((), generator=generator)) < 0.5:  # the moved view may be either side
            views.reverse()
        return Episode(*views)
