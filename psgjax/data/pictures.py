"""Images of files and arrays, read exactly or refused: uint8, 0 (black) to 255, with one channel if they are grey, else three.

`docs/evaluation.md`, "What is read", states the rules. Nothing is guessed: not a layout, not a range of values, not a file's depth.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from psgjax.config import ConfigError
from psgjax.files import write_atomically

# Of the formats that Pillow reads, some start other programs (EPS) or are seldom tested.
_SUFFIXES = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
}
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX")  # of Pillow, with 8 bits a channel at most
_MOST_PIXELS = 2**24  # a file that claims more is not decoded
_MOST_BYTES = 2**31  # of an array, unpacked: a small .npz can hold a terabyte
_FEW = 50  # values, or 1 % of them, may be stray
_CHUNK = 1000  # images scaled at a time, which bounds the memory

RangeName = Literal["0..1", "-1..1", "0..255", "0..65535"]
_RANGES: dict[RangeName, tuple[int, int]] = {
    "0..1": (0, 1),
    "-1..1": (-1, 1),
    "0..255": (0, 255),
    "0..65535": (0, 65535),
}


def read_picture(path: Path) -> np.ndarray:
    """A PNG, JPEG, WebP, BMP, TIFF or GIF file of one image as uint8 [H, W, 1] if it is grey, else [H, W, 3].

    16 bits are rounded to 8, what is transparent is laid on black, and the image is turned as its EXIF orientation says.

    Raises:
        ConfigError: If it is none, damaged, holds several images, or has more than 2^24 pixels or pixels that cannot be read
            exactly.
    """
    return _read_picture(path)[0]


def read_folder(folder: Path, tell: Callable[[str], None] = lambda text: None) -> np.ndarray:
    """The image files of a folder as uint8 [n, H, W, C], in the order of their names.

    Args:
        folder: Its subfolders are not read, nor what has another suffix.
        tell: Hears, in a line each, what is not read and what is laid on black.

    Raises:
        ConfigError: If there are none, one cannot be read, or they are not of one size.
    """
    accepted = [suffix for suffixes in _SUFFIXES.values() for suffix in suffixes]
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    paths = [path for path in inside if path.suffix.lower() in accepted and path.is_file()]
    if not paths:
        raise ConfigError(f"{folder} holds no image files ({', '.join(accepted)}).")
    if skipped := [path.name for path in inside if path not in set(paths)]:
        tell(f"{folder}: {len(skipped)} that are no image files were not read: {', '.join(skipped)}")
    images, transparent = [], 0
    for path in paths:
        picture, has_alpha = _read_picture(path)
        images.append(picture)
        transparent += has_alpha
        if picture.shape[:2] != images[0].shape[:2]:
            sizes = ["x".join(map(str, image.shape[:2])) for image in (picture, images[0])]
            raise ConfigError(f"{path} is {sizes[0]} and {paths[0].name} {sizes[1]}; all must be of one size.")
        _check_size(folder, len(paths) * max(image.nbytes for image in (picture, images[0])))
    if transparent:
        tell(f"{folder}: {transparent} of {len(paths)} images are transparent in places, which was laid on black")
    channels = max(image.shape[-1] for image in images)
    return np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in images])


def read_array(path: Path) -> np.ndarray:
    """The array in a .npy file, or in a .npz file the one that it holds or that is called images.

    Raises:
        ConfigError: If there is none, or the file is damaged, hostile, or unpacks to more than 2 GiB.
    """
    try:
        _check_size(path, path.stat().st_size)
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.ndarray):
                sizes = {item.filename.removesuffix(".npy"): item.file_size for item in loaded.zip.infolist()}
                if "images" not in sizes and len(sizes) != 1:
                    raise ConfigError(
                        f"{path} holds the arrays {', '.join(sizes) or 'none'}; it must hold one, or one called images."
                    )
                name = "images" if "images" in sizes else next(iter(sizes))
                _check_size(path, sizes[name])
                loaded = loaded[name]
        if not isinstance(loaded, np.ndarray):
            raise ValueError("it holds something else")
        return loaded
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}.") from None
    except ConfigError:
        raise
    except Exception as error:  # a damaged or hostile file makes numpy and zipfile raise one of a dozen types
        raise ConfigError(f"{path} cannot be read as an array of images: {error}") from None


def to_images(array: np.ndarray, name: str, given: RangeName | None = None, option: str = "--range") -> np.ndarray:
    """An array as images, uint8 [K, n, H, W, C].

    Args:
        array: [n, H, W], [n, H, W, C], [n, C, H, W], [K, n, H, W, C] or [K, n, C, H, W], C 1 or 3, of any type of numbers.
        name: Of the array, for messages.
        given: What black and white are; only what is certain is read without.
        option: How it is given, for messages.

    Raises:
        ConfigError: If the layout or the range of the values is not certain, or a value is not in the range that is given.
    """
    array = _with_channels_last(array, name)
    low, high = _RANGES[_range(array, name, given, option)]
    if array.dtype == np.uint8 and high == 255:
        return grey(array)
    pixels = np.empty(array.shape, np.uint8)
    for images, into in zip(array, pixels, strict=True):
        for start in range(0, len(images), _CHUNK):
            part = slice(start, start + _CHUNK)
            into[part] = np.clip(np.rint((images[part].astype(np.float64) - low) * (255 / (high - low))), 0, 255)
    return grey(pixels)


def grey(images: np.ndarray) -> np.ndarray:
    """Images [..., 3] whose channels are equal throughout as [..., 1]; others as they are."""
    return images[..., :1] if np.array_equal(images, np.broadcast_to(images[..., :1], images.shape)) else images


def _with_channels_last(array: np.ndarray, name: str) -> np.ndarray:
    """The array as [K, n, H, W, C]."""
    shape = f"{name} holds an array {list(array.shape)}"
    if array.ndim not in (3, 4, 5) or not array.size:
        raise ConfigError(
            f"{shape}; it must be [n, H, W], [n, H, W, C], [n, C, H, W], or the latter two after a K of generators."
        )
    if array.ndim == 3:
        if array.shape[-1] in (1, 3):
            raise ConfigError(f"{shape}, which may be a single image [H, W, C]; give images as [n, H, W, C].")
        array = array[..., None]
    else:
        first, last = (array.shape[axis] in (1, 3) for axis in (-3, -1))
        if first == last:
            what = "two axes may be the channels" if first else "no axis has their length, 1 or 3"
            raise ConfigError(f"{shape}; its channels must be the last axis or the third from last, and {what}.")
        array = array if last else np.moveaxis(array, -3, -1)
    return array if array.ndim == 5 else array[None]


def _range(array: np.ndarray, name: str, given: RangeName | None, option: str) -> RangeName:
    """What black and white are: as given, or where only one range explains the values."""
    real = array.dtype == bool or np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)
    if not real:
        raise ConfigError(f"{name} holds {array.dtype}; images must be whole numbers or floats.")
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise ConfigError(f"{name} holds NaN or infinity: the generator diverged, or the file is damaged.")
    least, most = float(array.min()), float(array.max())
    found = given or _certain_range(array, least, most)
    values = f"{name} holds {array.dtype} from {least:.7g} to {most:.7g}"
    if found is None:
        names = ", ".join(_RANGES)
        raise ConfigError(f"{values}, and what is black and white is not certain: say it with {option} ({names}).")
    if not _within(found, least, most):
        raise ConfigError(f"{values}, which does not lie in {found}; correct {option}.")
    return found


def _certain_range(array: np.ndarray, least: float, most: float) -> RangeName | None:
    """The range of which the values use both halves, if no other one explains values of that type."""
    if array.dtype == bool:
        return "0..1"
    if array.dtype == np.uint16:
        return "0..65535" if most >= 2**15 else None
    if np.issubdtype(array.dtype, np.integer):
        return "0..255" if most >= 128 and _within("0..255", least, most) else None
    # Floats from 0 up may be of any range: those from 0 to 1, bright images of -1 to 1. Of a few beyond 0 to 1 each may be stray.
    few = max(_FEW, array.size // 100)
    uses_both = min(np.count_nonzero(array < -0.5), np.count_nonzero(array > 0.5)) >= few
    return "-1..1" if uses_both and _within("-1..1", least, most) else None


def _within(name: RangeName, least: float, most: float) -> bool:
    """Whether values lie in a range, but for less than half a step of 8 bits."""
    low, high = _RANGES[name]
    slack = (high - low) / 510
    return low - slack < least and most < high + slack


def _read_picture(path: Path) -> tuple[np.ndarray, bool]:
    """`read_picture`, and whether something was transparent."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's of size comes later than this limit
            with Image.open(path, formats=tuple(_SUFFIXES)) as image:
                if image.width * image.height > _MOST_PIXELS:
                    raise ValueError(f"it is {image.width}x{image.height}; at most {_MOST_PIXELS:,} pixels are read")
                if getattr(image, "is_animated", False):
                    raise ValueError("it holds several images; save each as a file of its own")
                return _decode(image)
    except Exception as error:  # a damaged file makes Pillow raise one of a dozen types
        raise ConfigError(f"{path} cannot be read as an image: {error}") from None


def _decode(image: Any) -> tuple[np.ndarray, bool]:
    stored, mode = str(image.tile[0].args if image.tile else ""), image.mode
    if mode.startswith("I") and "I;16" in stored and "I;16S" not in stored and "I;16BS" not in stored:
        transparent = image.info.get("transparency")
        values = np.asarray(ImageOps.exif_transpose(image)).astype(np.int64)[..., None]
        opaque = np.ones_like(values) if transparent is None else (values != transparent)
        return np.rint(values * opaque / 257).astype(np.uint8), not opaque.all()
    if mode not in _MODES or ";16" in stored:
        kind = f"16 bits a channel ({mode})" if ";16" in stored else f"its pixels are {mode}"
        raise ValueError(f"{kind}, which cannot be read exactly; save it as grey or RGB, with 8 bits a channel")
    pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGBA"))
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    if alpha.min() == 255:
        return grey(colour), False
    laid = ((colour.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)
    if not laid.any() and alpha.any():
        raise ValueError("it is black where it is not transparent, and nothing of it is left on black; save it opaque")
    return grey(laid), True


def _check_size(path: Path, size: int) -> None:
    if size > _MOST_BYTES:
        raise ConfigError(
            f"{path} unpacks to {size:,} bytes; at most {_MOST_BYTES:,} are read: give fewer images, or uint8."
        )


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
