"""Images in arrays, read exactly or refused: uint8, 0 (black) to 255, with one channel if they are grey, else three.

`docs/evaluation.md`, "What is read", states the rules. Nothing is guessed: not a layout, not a range of values.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from psgjax.config import ConfigError, RangeName
from psgjax.sources import Track, untracked

MOST_BYTES = 2**31  # of an array, unpacked: a small .npz can hold a terabyte
_FEW = 50  # values, or 1 % of them, may be stray
_CHUNK = 1000  # images scaled at a time, which bounds the memory

_RANGES: dict[RangeName, tuple[int, int]] = {
    "0..1": (0, 1),
    "-1..1": (-1, 1),
    "0..255": (0, 255),
    "0..65535": (0, 65535),
}


def read_array(path: Path, name: str | None = None, most: int | None = None) -> np.ndarray:
    """The array in a .npy file, or in a .npz file the one of that name; without one the one that it holds or that is called images.

    Raises:
        ConfigError: If there is none, or the file is damaged, hostile, or unpacks to more than `most` bytes.
    """

    def read(file: Any) -> Any:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        sizes = {item.filename.removesuffix(".npy"): item.file_size for item in loaded.zip.infolist()}
        chosen = name or ("images" if "images" in sizes else next(iter(sizes), ""))
        if chosen not in sizes or (name is None and chosen != "images" and len(sizes) != 1):
            raise ConfigError(
                f"{path} holds the arrays {', '.join(sizes) or 'none'}; it must hold one, or one called images."
            )
        check_size(path, sizes[chosen], most)
        return loaded[chosen]

    array = _opened(path, read, most)
    if not isinstance(array, np.ndarray):
        raise ConfigError(f"{path} cannot be read as an array of images: it holds something else")
    return array


def arrays_in(path: Path) -> dict[str, int]:
    """The names of the arrays in a .npz file, and how many dimensions each has; that in a .npy file is called images.

    Raises:
        ConfigError: If the file is missing, damaged or hostile.
    """

    def dimensions(file: Any) -> int:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return len(header(file)[0])

    def read(file: Any) -> dict[str, int]:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return {"images": dimensions(file)}
        found = {}
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    found[name.removesuffix(".npy")] = dimensions(member)
        return found

    return _opened(path, read, 2**62)


def _opened(path: Path, use: Callable[[Any], Any], most: int | None) -> Any:
    """What is read of the opened file, of whatever is wrong with which there is one line."""
    try:
        check_size(path, path.stat().st_size, most)
        with path.open("rb") as file:
            return use(file)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}.") from None
    except ConfigError:
        raise
    except Exception as error:  # a damaged or hostile file makes numpy and zipfile raise one of a dozen types
        raise ConfigError(f"{path} cannot be read as an array of images: {error}") from None


def to_images(
    array: np.ndarray, name: str, given: RangeName | None = None, option: str = "--range", track: Track = untracked
) -> np.ndarray:
    """An array as images, uint8 [K, n, H, W, C].

    Args:
        array: [n, H, W], [n, H, W, C], [n, C, H, W], [K, n, H, W, C] or [K, n, C, H, W], C 1 or 3, of any type of numbers.
        name: Of the array, for messages.
        given: What black and white are; only what is certain is read without.
        option: How it is given, for messages.
        track: Shows how far the scaling of values has come.

    Raises:
        ConfigError: If the layout or the range of the values is not certain, or a value is not in the range that is given.
    """
    array = _with_channels_last(array, name)
    low, high = _RANGES[range_of(array, name, given, option)]
    if array.dtype == np.uint8 and high == 255:
        return grey(array)
    pixels = np.empty(array.shape, np.uint8)
    for images, into in zip(array, pixels, strict=True):
        starts = range(0, len(images), _CHUNK)
        for start in track(starts, len(starts), "scaling values"):
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


def range_of(array: np.ndarray, name: str, given: RangeName | None, option: str) -> RangeName:
    """What black and white are: as given, or where only one range explains the values (`to_images`)."""
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


def check_size(path: Path, size: int, most: int | None = None) -> None:
    """Refuse what unpacks to more bytes than that, or than `MOST_BYTES`."""
    most = MOST_BYTES if most is None else most
    if size > most:
        raise ConfigError(f"{path} unpacks to {size:,} bytes; at most {most:,} are read: give fewer images, or uint8.")
