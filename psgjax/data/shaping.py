"""Images made alike: cut to a square and resized, brought to one or three channels. Arrays are uint8 [N, H, W, C], C 1 or 3."""

from __future__ import annotations

import numpy as np
from PIL import Image

from psgjax.config import Data
from psgjax.data import layout
from psgjax.sources import Track, untracked

_LUMA = np.array([19595, 38470, 7471])  # of R, G and B in 65536: ITU-R BT.601, as Pillow has it


def fit(image: np.ndarray, side: int) -> np.ndarray:
    """The largest square in the middle of an image [H, W, C], resized to [side, side, C] by Lanczos with antialiasing."""
    if image.shape[:2] == (side, side):
        return image
    square = min(image.shape[:2])
    top, left = ((length - square) // 2 for length in image.shape[:2])
    image = np.ascontiguousarray(image[top : top + square, left : left + square])
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS)).reshape(side, side, -1)


def with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Images [..., 1] or [..., 3] with as many channels as asked for; grey is the luma of BT.601."""
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, -1)
    luma = [((each @ _LUMA + 32768) >> 16).astype(np.uint8) for each in images]
    return np.stack(luma)[..., None]


def shape(config: Data, *parts: np.ndarray, track: Track = untracked) -> list[np.ndarray]:
    """Images of each part in the size and the channels that the settings ask for, all parts alike."""
    if config.size:
        tracked = [track(part, len(part), "resizing images") for part in parts]
        parts = tuple(np.stack([fit(image, config.size) for image in part]) for part in tracked)
    if config.colour == "as-is":
        grey = [layout.grey(part) for part in parts]
        channels = max(part.shape[-1] for part in grey)
    else:
        channels = 1 if config.colour == "grey" else 3
    return [np.ascontiguousarray(with_channels(part, channels)) for part in parts]
