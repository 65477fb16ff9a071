"""Settings as frozen dataclasses: checked, written as JSON and read back, compared, and overridden from a command line."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import reprlib
import sys
from collections.abc import Callable, Container, Mapping
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from typing_extensions import Doc

T = TypeVar("T")


class ConfigError(Exception):
    """A setting that cannot be used; the message says what was given, what is accepted and what to do.

    >>> import psgjax
    >>> psgjax.Network(width=0)
    Traceback (most recent call last):
    ...
    psgjax.schema.ConfigError: network.width is 0; it must be a whole number of at least 1.
    """


class MissingPart(ConfigError):
    """A name that is in no table of parts; a user's own may have it where the file that registers it is named."""

    advice = "One of your own is known once the file that registers it is named: --parts FILE, or PSGJAX_PARTS=FILE."

    def __init__(self, kind: str, name: str, error: ConfigError) -> None:
        super().__init__(f"{error} {self.advice}")
        self.what = f"{kind} {_short.repr(name)}"


class Listed(Doc):
    """A sentence of explanation with `{}` in place of what a table holds when it is read: a user may have registered more."""

    def __init__(self, text: str, listed: Callable[[], str]) -> None:
        self._text, self._listed = text, listed

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def documentation(self) -> str:  # type: ignore[override]
        """The sentence now."""
        return self._text.format(self._listed())


class _Short(reprlib.Repr):
    """What a file holds, as a message quotes it: short, however deep it is nested."""

    def repr(self, x: object) -> str:
        text = super().repr(x)
        return text if len(text) <= 200 else f"{text[:200]}..."


_short = _Short()
_short.maxstring = _short.maxlong = _short.maxother = 80


def check(holds: bool, name: str, given: object, accepted: str) -> None:
    """Raise a ConfigError about the named setting unless the condition holds."""
    if not holds:
        raise ConfigError(f"{name} is {_short.repr(given)}; it must be {accepted}.")


def check_least(settings: object, prefix: str, **least: int) -> None:
    """Raise a ConfigError about the first of the named fields that is below the number given for it."""
    for name, number in least.items():
        value = getattr(settings, name)
        check(value >= number, prefix + name, value, f"a whole number of at least {number}")


def check_seed(seed: int, name: str = "seed") -> None:
    """Raise a ConfigError about the named seed unless it is one; jax takes other numbers modulo 2^32, in silence."""
    check(isinstance(seed, Integral) and 0 <= seed < 2**32, name, seed, f"a whole number from 0 to {2**32 - 1}")


def known(kind: str, name: str, names: tuple[str, ...]) -> str:
    """The name, if it is one of the names.

    Raises:
        ConfigError: If it is not; the message has the nearest.
    """
    if name in names:
        return name
    raise ConfigError(f"unknown {kind} {_short.repr(name)}; known are {', '.join(names)}. {_nearest(name, names)}")


def known_part(kind: str, name: str, table: Mapping[str, object]) -> str:
    """The name, if it is one of the table's.

    Raises:
        MissingPart: If it is not; the message has the nearest, and how one's own are known.
    """
    try:
        return known(kind, name, tuple(table))
    except ConfigError as error:
        raise MissingPart(kind, name, error) from None


def check_new(kind: str, name: str, own: Container[str]) -> None:
    """Refuse the name of a part that a user registers if it is one of the package's, or no word: it may name a file and an option.

    Raises:
        ConfigError: With what to do.
    """
    check(isinstance(name, str) and bool(re.fullmatch(r"\w[\w.+-]*", name)), f"the name of a {kind}", name, "a word")
    if name in own:
        raise ConfigError(f"{kind} {name} is one of psgjax's own; register yours under another name.")


def _nearest(name: str, names: tuple[str, ...]) -> str:
    """The question after a name that is none of the names: upper and lower case are no difference."""
    lower = {one.lower(): one for one in names}
    near = difflib.get_close_matches(name[:80].lower(), lower, n=1, cutoff=0.0)
    return f"Did you mean {lower[near[0]]!r}?"


def check_types(settings: Any, prefix: str = "") -> None:
    """Refuse fields of a configuration dataclass that are not of their type, and names that are none of those accepted.

    What `from_json` refuses in a file, the constructor then refuses in Python.

    Raises:
        ConfigError: With the field's name behind the prefix, what was given and what is accepted; of names, with the nearest.
    """
    for name, kind in get_type_hints(type(settings)).items():
        _check_type(kind, getattr(settings, name), prefix + name)


def _check_type(kind: Any, value: Any, name: str) -> None:
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        kinds = kinds[:1] * len(value) if kinds[-1] is ... and isinstance(value, tuple) else kinds
        if not isinstance(value, tuple) or len(value) != len(kinds):
            raise ConfigError(f"{name} is {_short.repr(value)}; it must be of type {kind}.")
        for inner, item in zip(kinds, value, strict=True):
            _check_type(inner, item, name)
    elif get_origin(kind) is Literal:
        if value not in get_args(kind):
            accepted = f"it must be one of {', '.join(map(str, get_args(kind)))}"
            question = f" {_nearest(value, get_args(kind))}" if isinstance(value, str) else ""
            raise ConfigError(f"{name} is {_short.repr(value)}; {accepted}.{question}")
    elif type(None) in get_args(kind):
        if value is not None:
            _check_type(get_args(kind)[0], value, name)
    elif not (
        (isinstance(value, kind) and type(value) is not bool)
        or type(value) is kind
        or (kind is float and type(value) is int and abs(value) <= sys.float_info.max)
    ):
        raise ConfigError(f"{name} is {_short.repr(value)}; it must be of type {kind.__name__}.")


def to_json(config: Any) -> str:
    """Any configuration dataclass as JSON text, keys in the order of its fields."""
    return json.dumps(dataclasses.asdict(config), indent=2, default=str) + "\n"


def local_path(name: str, path: Path) -> Path:
    """A path in this machine's file system: as given, but for a `~` at its beginning, which is the user's home.

    Raises:
        ConfigError: If it is the address of something elsewhere, or the home is not known.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        address = str(path).replace(":/", "://", 1)
        raise ConfigError(
            f"{name} {address} is not on this machine; give a folder of a file system that is mounted here."
        )
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigError(f"{name} {path}: there is no home folder of that name; give the path in full.") from None


def local_paths(options: T, prefix: str = "--") -> T:
    """A command's options with every path in them as `local_path` has it.

    Raises:
        ConfigError: As `local_path`, with the option's name; of one without a default, which has no dashes, its plain name.
    """
    changes: dict[str, Any] = {}
    for item in dataclasses.fields(options):  # type: ignore[arg-type]
        value, name = getattr(options, item.name), prefix + item.name.replace("_", "-")
        if isinstance(value, Path):
            required = item.default is item.default_factory is dataclasses.MISSING
            changes[item.name] = local_path(item.name if required else name, value)
        elif dataclasses.is_dataclass(value):
            changes[item.name] = local_paths(value, f"{name}.")
    return dataclasses.replace(options, **changes) if changes else options  # type: ignore[type-var]


def from_json(kind: type[T], text: str) -> T:
    """The configuration dataclass `kind` that `to_json` wrote.

    Raises:
        ConfigError: If the text is not JSON, or a field is unknown, missing or of another type.
    """
    try:
        values = json.loads(text)
    except RecursionError:
        raise ConfigError(
            "the configuration is nested too deeply; it must be a JSON object as this version writes it."
        ) from None
    except ValueError as error:
        raise ConfigError(f"the configuration is not JSON: {error}.") from None
    return _build(kind, values, "")


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Where two configurations differ, as dataclasses or as the JSON of them: `name: one -> other`, dotted, in field order."""
    if dataclasses.is_dataclass(one) and dataclasses.is_dataclass(other):
        one, other = vars(one), vars(other)
    if isinstance(one, dict) and isinstance(other, dict):
        keys = dict.fromkeys([*one, *other])
        return [text for key in keys for text in differences(one.get(key), other.get(key), f"{name}.{key}")]
    return [] if one == other else [f"{name[1:]}: {one} -> {other}"]


def overrides_of(kind: type) -> type:
    """A dataclass with the fields of `kind`, each optional and unset, for a command line that overrides a named value."""
    hints = get_type_hints(kind, include_extras=True)
    fields = []
    for item in dataclasses.fields(kind):
        hint = hints[item.name]
        fields.append((item.name, Annotated[get_args(hint)[0] | None, *hint.__metadata__], None))
    return dataclasses.make_dataclass(kind.__name__ + "Overrides", fields, frozen=True)


def override(value: T, overrides: Any) -> T:
    """`value` with every field replaced that `overrides` sets; checked again as a whole."""
    changed = {f.name: v for f in dataclasses.fields(overrides) if (v := getattr(overrides, f.name)) is not None}
    return dataclasses.replace(value, **changed)  # type: ignore[type-var]


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value`, decoded JSON, as the annotated type `kind`."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    label = where.rstrip(".") or "the configuration"
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"{label} is {_short.repr(value)}; it must be a JSON object.")
        hints = get_type_hints(kind, include_extras=True)
        value = {name: item for name, item in value.items() if name not in getattr(kind, "_former", ())}
        value = kind.upgraded(value) if hasattr(kind, "upgraded") else value
        for name in value:
            known("setting", name, tuple(hints))
        return kind(**{name: _build(hints[name], item, f"{where}{name}.") for name, item in value.items()})  # type: ignore[operator]
    if type(None) in get_args(kind):
        return None if value is None else _build(get_args(kind)[0], value, where)
    if get_origin(kind) is tuple and isinstance(value, list):
        inner, *rest = get_args(kind)
        kinds = [inner] * len(value) if rest == [...] else [inner, *rest]
        kinds += [Any] * (len(value) - len(kinds))
        return tuple(_build(each, item, where) for each, item in zip(kinds, value, strict=False))
    if kind is Path and isinstance(value, str):
        return Path(value)
    _check_type(kind, value, label)
    return float(value) if kind is float else value
