"""Whose folder it is: the settings and the images of the run in it, by which it goes on, anywhere and later.

What describes a machine, a network or a path is no part of a run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from psgjax import schema
from psgjax.config import Config, ConfigError, Data
from psgjax.data import dataset as datasets
from psgjax.data.dataset import Dataset

# What a run writes into its folder, beside the lock.
_OWN = ("env.json", "metrics.jsonl", "samples", "neighbours.png", "checkpoints", "best", "diverged.safetensors")


def runs_of(folder: Path, config: Config, seeds: Sequence[int] = ()) -> dict[Path, Config]:
    """The folder and the configuration of each run: in folder/seed-N for each of several seeds, or else one in the folder itself.

    Args:
        folder: A method's.
        config: The method's.
        seeds: In place of the configuration's one.
    """
    if len(seeds) > 1:
        return {folder / f"seed-{seed}": dataclasses.replace(config, seed=seed) for seed in seeds}
    return {folder: dataclasses.replace(config, seed=seeds[0]) if seeds else config}


def read_config(folder: Path) -> Config | None:
    """The configuration of the run in that folder, or None where there is no run.

    Raises:
        ConfigError: If the folder's config.json cannot be read as one.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        return schema.from_json(Config, path.read_text(encoding="utf-8"))
    except schema.MissingPart as error:
        raise ConfigError(f"{path}: this run is made with {error.what}, which is not there. {error.advice}") from None
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a configuration of this version: {error} Choose another --out.") from None


def runs_in(folder: Path) -> dict[Path, Config]:
    """The runs that `runs_of` once put there, by seed; empty where there is none.

    Raises:
        ConfigError: If a config.json cannot be read as one.
    """
    found = {path: config for path in (folder, *folder.glob("seed-*")) if (config := read_config(path)) is not None}
    return dict(sorted(found.items(), key=lambda item: item[1].seed))


def find_data(asked: Data, folders: Iterable[Path]) -> Data:
    """Where the images lie: as asked or, where neither a source nor a folder is named, where the first of these runs found its own.

    Args:
        asked: The settings of a command.
        folders: Of runs that there may be.

    Raises:
        ConfigError: If a run's config.json or env.json is damaged.
    """
    if asked.source == "auto" and asked.dir is None:
        for folder in folders:
            config, info = read_config(folder), _recorded(folder)
            if config and info:
                found = info.get("dir", config.data.dir)  # earlier versions recorded it there alone
                return dataclasses.replace(asked, source=info["source"], dir=found and Path(found))
    return asked


def data_of(folder: Path, config: Config, tell: Callable[[str], None], asked: Data | None = None) -> Dataset:
    """The data set of the run in that folder, from where it was found last: the very images that it began with.

    Args:
        folder: The run's.
        config: The run's.
        tell: Hears a line of text about anything slow.
        asked: Names a source or a folder where the images lie now, if anything.

    Raises:
        ConfigError: If the images cannot be had, or are others; then with both SHA-256.
    """
    place = dataclasses.replace(config.data, source="auto", dir=None)
    if asked is not None:
        place = dataclasses.replace(place, source=asked.source, dir=asked.dir)
    data = datasets.load(find_data(place, [folder]), tell)
    check_data(folder, data, "give the folder of the run's own images with --data.dir")
    return data


def check_data(folder: Path, data: Dataset, advice: str = "restore them, or choose another --out") -> None:
    """Refuse other images than those that the run in that folder began with, if there is one. Writes nothing.

    Raises:
        ConfigError: With what both are, or that the run's env.json is damaged.
    """
    before, now = _recorded(folder), data.info
    for key, what in (("sha256", "training images"), ("held_out_sha256", "labels or held-out images")):
        # Earlier versions recorded one SHA-256 alone.
        if before and key in before and key in now and before[key] != now[key]:
            raise ConfigError(
                f"the {what} are not those that {folder} began with: then {before['description']} (SHA-256 "
                f"{before[key][:12]}), now {now['description']} ({now[key][:12]}); {advice}."
            )


def _recorded(folder: Path) -> dict[str, Any] | None:
    """What env.json says of the run's data; None where there is no such file yet.

    Raises:
        ConfigError: If it is damaged, or lost from a run that has begun.
    """
    path = folder / "env.json"
    if not path.exists():
        if has_begun(folder):
            raise ConfigError(
                f"{path} is missing, which says what the run trains on; restore it, or choose another --out."
            )
        return None
    try:
        data = dict(json.loads(path.read_text(encoding="utf-8"))["data"])
        texts = [data[name] for name in ("description", "sha256", "source")] + [data.get("held_out_sha256", "")]
        if not all(isinstance(text, str) for text in (*texts, data.get("dir") or "")):
            raise ValueError
    except (ValueError, LookupError, TypeError, RecursionError):
        raise ConfigError(f"{path} is damaged; restore that file, or choose another --out.") from None
    return data


def has_begun(folder: Path) -> bool:
    """Whether the run in that folder has saved a state."""
    return any((folder / "checkpoints").glob("[0-9]*"))


def check_folder(folder: Path, config: Config, data: Dataset, seeds: Sequence[int] = ()) -> None:
    """Refuse a folder that holds other runs than those of `runs_of`, or what they would overwrite. Writes nothing.

    What describes a machine, a network or a path is no part of a run: it goes on wherever the same images are found.

    Raises:
        ConfigError: With the settings or seeds that differ, or with what is in the way.
    """
    schema.local_path("--out", folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; --out must name a folder.")
    wanted, found = runs_of(folder, config, seeds), runs_in(folder)
    begun = any(map(has_begun, found))
    # A run that was killed before it had made all folders may make the others.
    if found.keys() - wanted.keys() or (begun and wanted.keys() - found.keys()):
        known, given = (" ".join(str(run.seed) for run in runs.values()) for runs in (found, wanted))
        raise ConfigError(
            f"{folder} holds {'the seeds' if len(found) > 1 else 'a run of seed'} {known}, asked for is {given}: seeds are trained "
            "together from the first step. Choose another --out, or the same seeds."
        )
    for path, config in wanted.items():
        before = found.get(path, config)
        settings = [dataclasses.replace(each, data=Data(flip=each.data.flip)) for each in (before, config)]
        different = schema.differences(settings[0], settings[1])
        if different:
            raise ConfigError(
                f"{path} holds a run with other settings: {'; '.join(different)}. Choose another --out, or the same settings."
            )
        if path in found:
            check_data(path, data)
        else:
            check_free(path, _OWN)


def check_free(folder: Path, names: Iterable[str]) -> None:
    """Refuse a folder in which something has one of the names that will be written; beside anything else there is room.

    Raises:
        ConfigError: With what is in the way.
    """
    for name in names:
        path = folder / name
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise ConfigError(f"{path} is of no run and would be overwritten; choose another --out, or move it away.")
