"""Where images may come from, by name: the package's sources and those that a user registers. Nothing slow is imported here.

An entry names the function that reads; its file is imported when that source is first asked for. To add one to the package, write
its function in a file of its own, and its entry here: the command line, its help and the checks read this table.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psgjax import schema
from psgjax.schema import ConfigError

if TYPE_CHECKING:
    from psgjax.config import Data
    from psgjax.data.dataset import Dataset

Tell = Callable[[str], None]  # takes a line of text about anything slow or unexpected
Track = Callable[[Iterable[Any], int, str], Iterable[Any]]  # (items, how many, what they are) -> the items, with a bar


def untracked(items: Iterable[Any], count: int, what: str) -> Iterable[Any]:
    """The items, with nothing shown."""
    return items


@dataclass(frozen=True)
class Source:
    """What is known of a source."""

    doc: str  # a few words, for --help
    loader: Callable[[Data, Tell, Track], Dataset] | str  # the function, or "module:function" in this package's `data`
    reads: tuple[str, ...]  # the settings of `Data` that it reads beside those that apply to images from anywhere
    own: bool = True  # the package's

    def load(self, config: Data, tell: Tell, track: Track) -> Dataset:
        """The data set, by the function that the entry names."""
        loader = self.loader
        if isinstance(loader, str):
            file, function = loader.split(":")
            loader = getattr(importlib.import_module(f"psgjax.data.{file}"), function)
        return loader(config, tell, track)


_ANY = ("source", "train_images", "size", "colour", "flip")  # what applies to images from anywhere

SOURCES: dict[str, Source] = {
    "auto": Source("what lies in --data.dir, or else the best at hand of MNIST", "dataset:load_best", ("dir", "name")),
    "tfds": Source("TensorFlow Datasets, without TensorFlow", "tfds:load", ("dir", "name", "held_out")),
    "idx": Source("files in MNIST's format", "idx:load", ("dir", "name", "held_out", "transpose")),
    "folder": Source(
        "image files, in subfolders by class or not",
        "folder:load",
        ("dir", "name", "held_out", "background", "broken"),
    ),
    "array": Source("a .npy or .npz file", "array:load", ("dir", "name", "held_out", "range")),
    "packaged": Source("5,000 images of MNIST", "packaged:load", ("name",)),
    "python": Source("those that a program hands in", "dataset:load_nothing", ("name", "held_out", "range")),
}
_OWN = frozenset(SOURCES)


def find(config: Data) -> Source:
    """The source that the settings name.

    Raises:
        ConfigError: If there is none of that name, or it would ignore a setting that is given.
    """
    source = SOURCES[schema.known_part("data.source", config.source, SOURCES)]
    for field in dataclasses.fields(config):
        if field.name in (*_ANY, *source.reads) or getattr(config, field.name) == field.default:
            continue
        readers = [name for name, other in SOURCES.items() if field.name in other.reads]
        raise ConfigError(
            f"data.{field.name} {getattr(config, field.name)} with data.source {config.source} would be ignored: it applies to "
            f"data.source {' and '.join(readers)}; leave it out, or name one of them."
        )
    return source


def register(
    name: str,
    loader: Callable[[Data], Dataset],
    doc: str = "registered by you",
    reads: tuple[str, ...] = ("dir", "name"),
) -> None:
    """Let `Data(source=name)`, the command line and saved runs know a source of your own.

    >>> import numpy, psgjax
    >>> def stripes(settings):
    ...     images = numpy.zeros((100, 8, 8), numpy.uint8)
    ...     images[::2, ::2] = 255
    ...     return psgjax.Dataset.from_arrays(images)
    >>> psgjax.register_source("stripes", stripes)
    >>> psgjax.Data(source="stripes").source
    'stripes'

    Args:
        name: Any that is not one of the package's; your own is replaced.
        loader: The settings to a `Dataset`, such as `Dataset.from_arrays` makes.
        doc: A few words for people.
        reads: The settings of `Data` that it reads; others are refused with it, but for those that apply to images from anywhere,
            which are applied to what it returns.

    Raises:
        ConfigError: If the name is one of the package's.
    """
    schema.check_new("source", name, _OWN)
    SOURCES[name] = Source(doc, lambda config, tell, track: loader(config), reads, own=False)
