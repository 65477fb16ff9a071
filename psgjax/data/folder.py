"""A folder of image files, read as one data set.

Files are PNG, JPEG, WebP, BMP, TIFF or GIF by their suffix; whatever else lies there, and what is hidden, is skipped and counted.
Where all of them lie in two or more subfolders, these are the classes; where the subfolders are called train, and test or val or
valid, these are what is trained on and what is held out, and theirs are the classes. Links are followed, but for those to folders
that are read in any case. Images are resized by Lanczos after the largest square was cut out of the middle (`shaping.fit`), and
kept in the user's cache folder under the hash of the files' names and content and of the settings.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from psgjax import kept, memory
from psgjax.config import ConfigError, Data
from psgjax.data import layout, pictures, shaping
from psgjax.data.dataset import TENTH, Dataset
from psgjax.data.splits import DataError, canonical_order, folder_name
from psgjax.sources import Tell, Track

_TRAIN, _HELD_OUT = ("train", "training"), ("test", "val", "valid", "validation")
_VERSION = "1"  # of what is kept: another where files come to be read differently
_NAMED = 3  # this many of the files that something is said of are named
_READ_AHEAD = 64  # images decoded and not yet taken, at most


@dataclass
class _Found:
    """What a folder holds, relative to it."""

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)  # to folders, not followed


class _Read(NamedTuple):
    """The images of files: uint8 [n, H, W, C]; which of the files they are, [n]; and what is to be said of the files."""

    images: np.ndarray
    which: np.ndarray
    notes: list[str]


def load(config: Data, tell: Tell, track: Track) -> Dataset:
    """The images of the folder `config.dir`; where not all are asked for, those first by the hash of their names alone are read.

    Raises:
        DataError: If it holds too few images, images of several sizes and none is asked for, or too many broken files.
    """
    root = config.dir
    if root is None:
        raise DataError("data.source folder without data.dir; give a folder of image files with --data.dir FOLDER.")
    found = _search(root)
    if found.others:
        tell(f"{root}: {_named(found.others)} skipped: no image files ({', '.join(pictures.SUFFIXES)})")
    if found.links:
        tell(f"{root}: {_named(found.links)} not followed: links to folders that are read in any case")
    parts, depth = _parts(root, found.images, tell)
    if config.train_images:
        share = 1.0 if len(parts) > 1 else 1 - (config.held_out or TENTH)
        parts[0] = sorted(sorted(parts[0], key=_hash_of_name)[: round(config.train_images / share) + 1])
    names = [name for part in parts for name in part]
    read = _kept_or_read(root, names, config, tell, track)
    for note in read.notes:
        tell(f"{root}: {note}")
    classes, labels = _classes([PurePath(names[i]).parts for i in read.which], depth)
    if labels is None and any(len(PurePath(name).parts) > depth + 1 for name in names):
        tell(f"{root}: no labels, for which all images must lie in two or more subfolders")
    splits = []
    for chosen in (read.which < len(parts[0]), read.which >= len(parts[0])):
        splits.append(canonical_order(read.images[chosen], None if labels is None else labels[chosen], track))
    name, origin = config.name or folder_name(root), f"the image files in {root}"
    apart = splits[1] if len(parts) > 1 else None
    return Dataset.of(config, "folder", name, origin, splits[0], apart, classes=classes)


def _search(root: Path) -> _Found:
    """Every file under the folder, by name; hidden ones count as others.

    Raises:
        DataError: If it is no folder that can be read, or holds no image files.
    """
    accepted = f"it must be a folder that holds image files ({', '.join(pictures.SUFFIXES)}); correct --data.dir."
    if not root.is_dir():
        raise DataError(f"data.dir {root} {'is not a folder' if root.exists() else 'does not exist'}; {accepted}")
    found, real = _Found(), root.resolve()
    seen = {real}

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}); {accepted}")

    def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        return os.walk(folder, onerror=fail)

    pending = [root]
    while pending:
        for place, folders, files in walk(pending.pop()):
            below = os.path.relpath(place, root)
            for name in sorted(folders):
                path = Path(place, name)
                if name.startswith("."):
                    folders.remove(name)
                    found.others.append(os.path.normpath(os.path.join(below, name)))
                elif path.is_symlink():
                    target = path.resolve()
                    if target in seen or target.is_relative_to(real) or real.is_relative_to(target):
                        found.links.append(os.path.normpath(os.path.join(below, name)))
                    else:
                        pending.append(path)
                        seen.add(target)
                else:
                    seen.add(path.resolve())
            for name in files:
                takes = pictures.is_picture(name) and (
                    os.path.isfile(os.path.join(place, name)) or os.path.islink(os.path.join(place, name))
                )
                (found.images if takes else found.others).append(os.path.normpath(os.path.join(below, name)))
    if not found.images:
        raise DataError(
            f"data.dir {root} holds no image files{f', but {_named(found.others)}' if found.others else ''}; {accepted}"
        )
    found.images.sort()
    return found


def _parts(root: Path, names: list[str], tell: Tell) -> tuple[list[list[str]], int]:
    """The files to train on and, where the folder has a place for them, those held out; and below which depth classes begin."""
    tops = sorted({PurePath(name).parts[0] if len(PurePath(name).parts) > 1 else "" for name in names})
    train = [top for top in tops if top.lower() in _TRAIN]
    held_out = sorted((top for top in tops if top.lower() in _HELD_OUT), key=lambda top: _HELD_OUT.index(top.lower()))
    if len(train) != 1 or not held_out or len(train + held_out) != len(tops):
        return [names], 0
    parts = [[name for name in names if PurePath(name).parts[0] == top] for top in (*train, *held_out)]
    tell(f"{root}: {train[0]} is trained on, {held_out[0]} is held out")
    if unused := parts[2:]:
        tell(f"{root}: {sum(map(len, unused)):,} images in {', '.join(held_out[1:])} are not used")
    return parts[:2], 1


def _classes(paths: list[tuple[str, ...]], depth: int) -> tuple[list[str] | None, np.ndarray | None]:
    """The names of the classes and the number of each file's; none unless all files lie in two or more subfolders."""
    if any(len(path) < depth + 2 for path in paths):
        return None, None
    classes, labels = np.unique([path[depth] for path in paths], return_inverse=True)
    return (classes.tolist(), labels) if len(classes) > 1 else (None, None)


def _kept_or_read(root: Path, names: list[str], config: Data, tell: Tell, track: Track) -> _Read:
    """The images of those files, from the user's cache folder where the same files were read before."""
    key = hashlib.sha256(f"{_VERSION} {config.size} {config.colour} {config.background} {config.broken}".encode())
    with ThreadPoolExecutor() as pool:
        digests = pool.map(_hash_of_content, [root / name for name in names])
        for name, digest in zip(names, track(digests, len(names), "looking at image files"), strict=True):
            key.update(f"{os.fsencode(name)!r} {digest}\n".encode())
    path = kept.cache_folder() / "images" / f"{key.hexdigest()}.npz"
    if arrays := kept.read(path):
        return _Read(arrays["images"], arrays["which"], json.loads(str(arrays["notes"])))
    read = _read(root, names, config, track)
    if failed := kept.write(path, images=read.images, which=read.which, notes=np.array(json.dumps(read.notes))):
        tell(f"the images could not be kept, and will be read file by file again next time: {failed}")
    return read


def _read(root: Path, names: list[str], config: Data, track: Track) -> _Read:
    """The images of those files, decoded by all cores.

    Raises:
        DataError: If they are of several sizes and none is asked for, or too many are broken.
    """
    images = np.zeros((0, 0, 0, 0), np.uint8)
    which: list[int] = []
    said: dict[str, list[str]] = {"broken": [], "transparent": [], "several": [], "smaller": []}
    decode = partial(_decode, size=config.size, background=config.background)
    for i, picture in enumerate(
        track(_in_order(decode, [root / name for name in names]), len(names), "reading images")
    ):
        if isinstance(picture, str):
            said["broken"].append(f"{names[i]} ({picture})")
            continue
        pixels = picture.pixels
        if not which:
            shape = (len(names), *pixels.shape[:2], 1 if config.colour == "grey" else 3)
            memory.check(2 * int(np.prod(shape)), f"{len(names):,} images of {pixels.shape[1]}x{pixels.shape[0]}")
            images = np.zeros(shape, np.uint8)
        if pixels.shape[:2] != images.shape[1:3]:
            sizes = [f"{width}x{height}" for height, width in (images.shape[1:3], pixels.shape[:2])]
            raise DataError(
                f"{root} holds images of several sizes: {names[which[0]]} is {sizes[0]} and {names[i]} {sizes[1]}; bring them to "
                "one with --data.size."
            )
        for what in ("transparent", "several", "smaller"):
            if getattr(picture, what):
                said[what].append(names[i])
        images[len(which)] = shaping.with_channels(pixels[None], images.shape[-1])[0]
        which.append(i)
    broken, texts = (
        said["broken"],
        {
            "transparent": f"transparent in places, laid on {config.background}",
            "several": "of several pictures, the first of which is taken",
            "smaller": f"smaller than {config.size}x{config.size} and enlarged",
        },
    )
    if len(broken) > config.broken * len(names) or not which:
        raise DataError(
            f"{root}: {_named(broken)} of {len(names):,} image files cannot be read, more than --data.broken {config.broken:g} "
            "allows; mend or remove them, or allow more."
        )
    notes = [f"{_named(broken)} cannot be read and are left out"] if broken else []
    notes += [f"{_named(said[what])} {text}" for what, text in texts.items() if said[what]]
    images = images[: len(which)]
    return _Read(layout.grey(images) if config.colour == "as-is" else images, np.array(which), notes)


class _Decoded(NamedTuple):
    """An image of a file, [H, W, C], and what is to be said of it."""

    pixels: np.ndarray
    transparent: bool
    several: bool
    smaller: bool


def _decode(path: Path, size: int, background: str) -> _Decoded | str:
    """The image in a file, or in a few words why there is none."""
    try:
        pixels, transparent, several = pictures.read_to_train_on(path, "white" if background == "white" else "black")
    except ConfigError as error:
        return str(error).removeprefix(f"{path} cannot be read as an image: ").replace(str(path), path.name)
    smaller = bool(size) and min(pixels.shape[:2]) < size
    return _Decoded(shaping.fit(pixels, size) if size else pixels, transparent, several, smaller)


def _in_order(decode: partial[_Decoded | str], paths: Sequence[Path]) -> Iterator[_Decoded | str]:
    """What `decode` makes of each, on all cores, a few ahead of whoever takes them."""
    with ThreadPoolExecutor() as pool:
        ahead = [pool.submit(decode, path) for path in paths[:_READ_AHEAD]]
        try:
            for i in range(len(paths)):
                yield ahead.pop(0).result()
                if i + _READ_AHEAD < len(paths):
                    ahead.append(pool.submit(decode, paths[i + _READ_AHEAD]))
        finally:
            pool.shutdown(cancel_futures=True)


def _hash_of_content(path: Path) -> str:
    """SHA-256 of a file; of one that will not be decoded, why."""
    try:
        if path.stat().st_size > pictures.MOST_FILE_BYTES:
            return "too large"
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return str(error.strerror)


def _hash_of_name(name: str) -> bytes:
    return hashlib.sha256(os.fsencode(name)).digest()


def _named(names: list[str]) -> str:
    """How many, and the first of them."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"{len(names):,} ({', '.join(names[:_NAMED])}{more})"
