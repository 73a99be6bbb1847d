"""Is the answer in this gallery at all? A logistic regression on how the first results of a text stand out.

Every held-out caption is asked once of a gallery without some other picture and once of the same gallery without its
own, so that both have as many chances of a high cosine, and of galleries of several sizes, since the highest of many
cosines is higher. What is fitted is the log-odds at equal shares
of both; another prior probability of presence moves them by its own log-odds (Bayes' theorem).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .regression import LogisticRegression, RidgeRegression


PRESENCE_FEATURES = (
    "first cosine",
    "its deviations above the gallery's mean",
    "margin to the second cosine",
    "expected cosine of the text's own image",
    "logarithm of the gallery's size",
)
GALLERY_SHARES = (1.0, 0.5, 0.25)
SMALLEST_GALLERY = 20
CAPTIONS_AT_A_TIME = 1024


class GalleryCosines(NamedTuple):
    """
    How the cosines of texts with a gallery lie; all float64 of shape `(texts,)` but the last.

    Attributes:
        first, second: the two highest.
        mean, deviation: over the whole gallery.
        num_images (`int`): its size.
    """

    first: torch.Tensor
    second: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor
    num_images: int


@dataclass(frozen=True)
class Presence:
    """
    Attributes:
        own_cosine (`RidgeRegression`): expects the cosine of a text with its own image from its mean direction.
        regression (`LogisticRegression`): on `PRESENCE_FEATURES`, at equal shares of presence and absence.
    """

    own_cosine: RidgeRegression
    regression: LogisticRegression

    def probability(self, text_embeds: torch.Tensor, cosines: GalleryCosines, prior: float = 0.5) -> torch.Tensor:
        """
        Args:
            text_embeds (`torch.Tensor` of shape `(texts, dim)`): natural parameters.
            cosines (`GalleryCosines`): of the texts with the gallery.
            prior (`float`, *optional*, defaults to 0.5): how often the answer is there, in (0, 1).

        Returns:
            float64 of shape `(texts,)`.
        """
        if not 0 < prior < 1:
            raise ValueError(f"prior must lie between 0 and 1, got {prior}: it is how often the answer is there.")
        features = presence_features(text_embeds, cosines, self.own_cosine)
        return (self.regression.log_odds(features) + math.log(prior / (1 - prior))).sigmoid()


def presence_features(text_embeds: torch.Tensor, cosines: GalleryCosines, own_cosine: RidgeRegression) -> torch.Tensor:
    """`PRESENCE_FEATURES`, float64 of shape `(texts, 5)`."""
    tiny = torch.finfo(torch.float32).tiny
    columns = [
        cosines.first,
        (cosines.first - cosines.mean) / cosines.deviation.clamp(min=tiny),
        cosines.first - cosines.second,
        own_cosine(F.normalize(text_embeds, dim=-1)),
        torch.full_like(cosines.first, math.log(cosines.num_images)),
    ]
    return torch.stack([column.double() for column in columns], dim=1)


class PresenceTrials(NamedTuple):
    """
    Captions asked of galleries with and without their image.

    Attributes:
        features (`torch.DoubleTensor` of shape `(trials, 5)`).
        present (`torch.DoubleTensor` of shape `(trials,)`): 1 with the image, 0 without.
        caption (`torch.LongTensor` of shape `(trials,)`): which caption was asked.
    """

    features: torch.Tensor
    present: torch.Tensor
    caption: torch.Tensor


@torch.no_grad()
def presence_trials(
    text_embeds: torch.Tensor,
    image_embeds: torch.Tensor,
    text_image_index: torch.Tensor,
    own_cosine: RidgeRegression,
    *,
    shares: tuple[float, ...] = GALLERY_SHARES,
    seed: int = 0,
) -> PresenceTrials:
    """
    Args:
        text_embeds (`torch.Tensor` of shape `(captions, dim)`): natural parameters.
        image_embeds (`torch.Tensor` of shape `(images, dim)`): unit vectors.
        text_image_index (`torch.LongTensor` of shape `(captions,)`): the image of each caption.
        own_cosine (`RidgeRegression`): of [`Presence`].
        shares (`tuple[float, ...]`, *optional*): of the images in the galleries.
        seed (`int`, *optional*, defaults to 0): draws the galleries.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(text_embeds, dim=-1)
    features, present, caption = [], [], []
    for share in shares:
        size = round(share * len(image_embeds))
        if size < min(SMALLEST_GALLERY, len(image_embeds)):
            continue
        gallery = torch.randperm(len(image_embeds), generator=generator)[:size]
        inside = torch.full((len(image_embeds),), -1)
        inside[gallery] = torch.arange(size)
        column = inside[text_image_index]
        asked = (column >= 0).nonzero().flatten()
        for rows in asked.split(CAPTIONS_AT_A_TIME):
            cosines = directions[rows] @ image_embeds[gallery].T
            other = (column[rows] + torch.randint(1, size, (len(rows),), generator=generator)) % size
            for with_image, left_out in ((True, other), (False, column[rows])):
                found = gallery_cosines(cosines, left_out)
                features.append(presence_features(text_embeds[rows], found, own_cosine))
                present.append(torch.full((len(rows),), float(with_image), dtype=torch.float64))
                caption.append(rows)
    return PresenceTrials(torch.cat(features), torch.cat(present), torch.cat(caption))


def gallery_cosines(cosines: torch.Tensor, left_out: torch.Tensor | None = None) -> GalleryCosines:
    """
    [`GalleryCosines`] of a matrix `(texts, images)`, with at least two images that are not left out.

    Args:
        cosines (`torch.Tensor` of shape `(texts, images)`).
        left_out (`torch.LongTensor` of shape `(texts,)`, *optional*): an image of each text that is not there.
    """
    values, count = cosines.double(), cosines.shape[1]
    total, squares = values.sum(dim=1), values.square().sum(dim=1)
    if left_out is not None:
        own = values.gather(1, left_out[:, None])[:, 0]
        total, squares, count = total - own, squares - own.square(), count - 1
        values = values.scatter(1, left_out[:, None], -torch.inf)
    mean = total / count
    first, second = values.topk(2, dim=1).values.T
    return GalleryCosines(first, second, mean, (squares / count - mean.square()).clamp(min=0).sqrt(), count)
