"""Image files, read exactly or refused: uint8, 0 (black) to 255, with one channel if they are grey, else three.

`docs/evaluation.md`, "What is read", states the rules. Nothing is guessed, such as a file's depth.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from psgjax.config import ConfigError
from psgjax.data.layout import check_size, grey
from psgjax.files import write_atomically

# Of the formats that Pillow reads, some start other programs (EPS) or are seldom tested.
_FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
}
SUFFIXES = tuple(suffix for suffixes in _FORMATS.values() for suffix in suffixes)
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX")  # of Pillow, with 8 bits a channel at most
_CONVERTED = ("CMYK", "YCbCr", "HSV")  # to RGB by a formula, without the file's colour profile
_MOST_PIXELS = 2**24  # a file that claims more is not decoded
_MOST_TO_TRAIN_ON = 2**26  # nor here: photographs may have more
MOST_FILE_BYTES = 2**30


class Picture(NamedTuple):
    """What a file holds: uint8 [H, W, 1] if it is grey, else [H, W, 3]; was something transparent; was it the first of several."""

    pixels: np.ndarray
    transparent: bool
    several: bool


def is_picture(name: str) -> bool:
    """Whether a file of that name is taken for an image: its suffix is one of a known format's, and it is not hidden."""
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


def read_to_train_on(path: Path, background: Literal["black", "white"] = "black") -> Picture:
    """Any PNG, JPEG, WebP, BMP, TIFF or GIF file, of several images the first, as near as 8 bits a channel come to it.

    As `read_picture`, but 16-bit colour loses its lower bytes, and CMYK becomes RGB as (1 - C)(1 - K) has it, without a profile.

    Args:
        path: The file.
        background: What is transparent is laid on it.

    Raises:
        ConfigError: If it is none, damaged, has more than 2^26 pixels, or values of which black and white are unknown.
    """
    return _read_picture(path, 255 if background == "white" else 0, lenient=True)


def read_picture(path: Path) -> np.ndarray:
    """A PNG, JPEG, WebP, BMP, TIFF or GIF file of one image as uint8 [H, W, 1] if it is grey, else [H, W, 3].

    16 bits are rounded to 8, what is transparent is laid on black, and the image is turned as its EXIF orientation says.

    Raises:
        ConfigError: If it is none, damaged, holds several images, or has more than 2^24 pixels or pixels that cannot be read
            exactly.
    """
    return _read_picture(path).pixels


def read_folder(folder: Path, tell: Callable[[str], None] = lambda text: None) -> np.ndarray:
    """The image files of a folder as uint8 [n, H, W, C], in the order of their names.

    Args:
        folder: Its subfolders are not read, nor what has another suffix.
        tell: Hears, in a line each, what is not read and what is laid on black.

    Raises:
        ConfigError: If there are none, one cannot be read, or they are not of one size.
    """
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    paths = [path for path in inside if is_picture(path.name) and path.is_file()]
    if not paths:
        raise ConfigError(f"{folder} holds no image files ({', '.join(SUFFIXES)}).")
    if skipped := [path.name for path in inside if path not in set(paths)]:
        tell(f"{folder}: {len(skipped)} that are no image files were not read: {', '.join(skipped)}")
    images, transparent = [], 0
    for path in paths:
        picture, has_alpha, _ = _read_picture(path)
        images.append(picture)
        transparent += has_alpha
        if picture.shape[:2] != images[0].shape[:2]:
            sizes = ["x".join(map(str, image.shape[:2])) for image in (picture, images[0])]
            raise ConfigError(f"{path} is {sizes[0]} and {paths[0].name} {sizes[1]}; all must be of one size.")
        check_size(folder, len(paths) * max(image.nbytes for image in (picture, images[0])))
    if transparent:
        tell(f"{folder}: {transparent} of {len(paths)} images are transparent in places, which was laid on black")
    channels = max(image.shape[-1] for image in images)
    return np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in images])


def _read_picture(path: Path, background: int = 0, lenient: bool = False) -> Picture:
    """`read_picture`, or with `lenient` `read_to_train_on`."""
    most = _MOST_TO_TRAIN_ON if lenient else _MOST_PIXELS
    try:
        if (size := path.stat().st_size) > MOST_FILE_BYTES:
            raise ValueError(f"it has {size:,} bytes; at most {MOST_FILE_BYTES:,} are read")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's of size comes later than this limit
            with Image.open(path, formats=tuple(_FORMATS)) as image:
                if image.width * image.height > most:
                    raise ValueError(f"it is {image.width}x{image.height}; at most {most:,} pixels are read")
                several = getattr(image, "is_animated", False)
                if several and not lenient:
                    raise ValueError("it holds several images; save each as a file of its own")
                return Picture(*_decode(image, background, lenient), several)
    except Exception as error:  # a damaged file makes Pillow raise one of a dozen types
        raise ConfigError(f"{path} cannot be read as an image: {error}") from None


def _decode(image: Any, background: int, lenient: bool) -> tuple[np.ndarray, bool]:
    stored, mode = str(image.tile[0].args if image.tile else ""), image.mode
    if mode.startswith("I") and "I;16" in stored and "I;16S" not in stored and "I;16BS" not in stored:
        transparent = image.info.get("transparency")
        values = np.asarray(ImageOps.exif_transpose(image)).astype(np.int64)[..., None]
        opaque = np.ones_like(values) if transparent is None else (values != transparent)
        return np.rint(np.where(opaque, values, background * 257) / 257).astype(np.uint8), not opaque.all()
    readable = mode in (*_MODES, *_CONVERTED) if lenient else mode in _MODES and ";16" not in stored
    if not readable:
        kind = f"16 bits a channel ({mode})" if ";16" in stored else f"its pixels are {mode}"
        raise ValueError(f"{kind}, which cannot be read exactly; save it as grey or RGB, with 8 bits a channel")
    turned = ImageOps.exif_transpose(image)
    pixels = np.asarray((turned.convert("RGB") if mode in _CONVERTED else turned).convert("RGBA"))
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    if alpha.min() == 255:
        return grey(colour), False
    weight = alpha.astype(np.uint16)
    laid = ((colour * weight + background * (255 - weight) + 127) // 255).astype(np.uint8)
    if np.all(laid == background) and alpha.any():
        name, other = ("white", "black") if background else ("black", "white")
        raise ValueError(
            f"it is {name} where it is not transparent, and nothing of it is left on {name}; save it opaque"
            + (f", or lay it on {other}" if lenient else "")
        )
    return grey(laid), True


def to_pixels(images: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] as uint8, the inverse of `step.scale`."""
    return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)


def image_grid(pixels: np.ndarray, columns: int = 8) -> np.ndarray:
    """Images uint8 [K, n, H, W, C] as one picture [K * rows * H, columns * W, C]: a block of rows for each generator."""
    generators, count, height, width, colours = pixels.shape
    rows = -(-count // columns)
    cells = np.zeros((generators, rows * columns, height, width, colours), np.uint8)
    cells[:, :count] = pixels
    cells = cells.reshape(generators * rows, columns, height, width, colours)
    return cells.transpose(0, 2, 1, 3, 4).reshape(generators * rows * height, columns * width, colours)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write uint8 [H, W, 1 or 3] as a PNG, as a whole or not at all."""
    content = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(content, format="PNG")
    write_atomically(path, content.getvalue())
