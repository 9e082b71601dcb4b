"""Augmentation of frames: random windows, mirroring and colours, drawn anew each time an example is seen.

Depth values never change. A window of a frame is what a camera of longer focal length sees from the same place: z along
the optical axis is the same, and only the intrinsics, which are not part of an example, are others.

Legend: H, W height and width in pixels; h, w those of a window.
"""

import dataclasses

import numpy as np

from mf_jax.configurable import check_at_least
from mf_jax.data.resize import center_crop_to_aspect

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """The augmentations of training examples, and their strengths.

    Attributes:
      flip: mirror left to right, one time in two.
      crop: a random window whose sides are at least this share of the largest one that fits in the frame; 1.0 is none.
      colour: strength of the changes of the image's colours, 0.0 (none) to 1.0.
    """

    flip: bool = False
    crop: float = 1.0
    colour: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.flip, bool):
            raise ValueError(f"data.augment.flip is {self.flip!r}; it must be True or False")
        check_at_least("data.augment", self, crop=0.0, colour=0.0)
        if not 0.0 < self.crop <= 1.0:
            raise ValueError(f"data.augment.crop is {self.crop}; it must be above 0 and at most 1, which is no crop")
        if self.colour > 1.0:
            raise ValueError(f"data.augment.colour is {self.colour}; it must be at most 1")


def random_window(
    frame: tuple[int, int], resolution: tuple[int, int], smallest: float, rng: np.random.Generator
) -> tuple[slice, slice]:
    """Rows and columns of a random window of the frame with the aspect ratio of `resolution` (to a pixel).

    Its sides are those of the largest such window, times a share that is uniform in [smallest, 1].

    Args:
      frame: (H, W). resolution: (h, w) that the window will be resized to; only their ratio matters.
    """
    largest = center_crop_to_aspect(np.empty(frame, bool), resolution).shape
    share = rng.uniform(smallest, 1.0)
    sides = [max(1, round(share * side)) for side in largest]
    top, left = (rng.integers(0, whole - side, endpoint=True) for whole, side in zip(frame, sides, strict=True))
    return slice(top, top + sides[0]), slice(left, left + sides[1])


def jitter_colour(image_HW3: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """The picture with random changes of exposure, white balance, contrast and saturation.

    For strength s, in this order: each channel to a power of exp(-s/2) to exp(s/2), times 1-s/2 to 1+s/2; all times
    1-s to 1+s (brightness); distances from the mean grey times 1-s to 1+s (contrast); distances of the channels from
    the pixel's grey times 1-s to 1+s (saturation). All uniform but the power, whose logarithm is. Clipped at the end.

    Returns:
      uint8 (H,W,3); with strength 0 the same values.
    """
    power_3 = np.exp(rng.uniform(-strength / 2, strength / 2, 3))
    gain_3 = 1 + rng.uniform(-strength / 2, strength / 2, 3)
    brightness, contrast, saturation = 1 + rng.uniform(-strength, strength, 3)
    level = np.arange(256)[:, None] / 255
    table = (255 * brightness * gain_3 * level**power_3).astype(np.float32)
    x_HW3 = np.stack([table[image_HW3[..., channel], channel] for channel in range(3)], axis=-1)
    mean = (x_HW3 @ _LUMA).mean()
    x_HW3 = mean + np.float32(contrast) * (x_HW3 - mean)
    grey_HW1 = (x_HW3 @ _LUMA)[..., None]
    x_HW3 = grey_HW1 + np.float32(saturation) * (x_HW3 - grey_HW1)
    return np.clip(np.round(x_HW3), 0, 255).astype(np.uint8)
