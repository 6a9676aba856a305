"""Protocols of other packages: named by their entry points, and loaded only when a job names them.

A package declares `[project.entry-points."bulkscore.protocols"]`, `NAME = "module:object"`, where the object is a
`Plugin`. Names are looked up in the installed packages' metadata, which runs none of their code.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeGuard, get_args

from schemas.fields import Mark, Part
from schemas.transported import Options
from schemas.values import InvalidValueError, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from importlib.metadata import EntryPoint

GROUP: Final = "bulkscore.protocols"

_TOLD: Final = 300


class Plugin(NamedTuple):
    """A protocol as a package gives it.

    `options` is the class of its `service.options`: their keys, each `marked` with what a change of it changes, and its
    docstring says in a line what the protocol is. `adapter` makes a `pipeline.adapter.Adapter` of an instance of it.
    `example` is a whole job file, and `url` says what `service.url` is: both are for `bulkscore protocols`.
    """

    options: type[Options]
    adapter: Callable[[Any], object]
    example: str = ""
    url: str = "the full URL to call"


def given() -> dict[str, tuple[EntryPoint, ...]]:
    """Return the protocols that installed packages give, by name: one entry each, if no two give the same."""
    return _given(tuple(sys.path))


@cache
def _given(_: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:
    found = sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value))
    return {entry.name: tuple(one for one in found if one.name == entry.name) for entry in found}


def package_of(entry: EntryPoint) -> str:
    """Return the name of the package that gives a protocol."""
    return entry.dist.name if entry.dist else entry.module


def plugin_of(name: str) -> Plugin:
    """Return the protocol of this name. Raises InvalidValueError, which names the package, where it cannot be used."""
    entry = _entry(name)
    try:
        found = entry.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever foreign code does when it is imported
        raise unusable(name, f"cannot be loaded ({told(error)})") from None
    wrong = _wrong(found)
    if wrong:
        raise unusable(name, f"gives {wrong}")
    assert isinstance(found, Plugin)
    return found


def made(name: str, options: Options) -> object:
    """Return what a package makes of options: an adapter. Raises InvalidValueError where it cannot."""
    plugin = plugin_of(name)
    try:
        return plugin.adapter(options)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
        raise unusable(name, f"makes no adapter of service.options ({told(error)})") from None


def told(error: BaseException) -> str:
    """Return an error of foreign code in a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:_TOLD].rstrip(": ")


def _entry(name: str) -> EntryPoint:
    entries = given().get(name, ())
    if not entries:
        raise InvalidValueError(f"{shown(name)} is given by no package here; install the one that gives it")
    if len(entries) > 1:
        raise InvalidValueError(f"{shown(name)} is given by {packages_of(name)}; uninstall one of them")
    return entries[0]


def packages_of(name: str) -> str:
    """Name the packages that give a protocol; more than one is an error when a job names it."""
    return " and ".join(map(package_of, given()[name]))


def taken(name: str) -> InvalidValueError:
    """Say that a package gives a protocol by the name of one of bulkscore's own."""
    mend = f"uninstall {packages_of(name)}, or give its protocol another name"
    return InvalidValueError(f"{shown(name)} is bulkscore's own, and {packages_of(name)} gives one too; {mend}")


def unusable(name: str, why: str, what: str = "") -> InvalidValueError:
    """Say that what a package gives cannot be used: the object itself, or `what` is made of it."""
    entry = _entry(name)
    given_by = f"{shown(name)} is given by {package_of(entry)}"
    return InvalidValueError(f"{given_by}, whose {what or entry.value} {why}; mend or uninstall it")


def _wrong(found: Any) -> str | None:
    """Say what is wrong with what a package gives, if anything."""
    if not isinstance(found, Plugin):
        return f"a {type(found).__name__}; allowed: a Plugin of pipeline.adapter"
    options: Any
    adapter: Any
    options, adapter, *_ = found
    if not (isinstance(options, type) and issubclass(options, Options)):
        return "options that are no subclass of the Options of pipeline.adapter"
    if not callable(adapter):
        return "an adapter that cannot be called with options"
    unmarked = next(_unmarked(options), None)
    return unmarked and f"an option {unmarked!r} that is not marked with what a change of it changes"


def _unmarked(part: type[Part]) -> Iterator[str]:
    """Yield the keys that do not say what a change of them changes; a mapping of keys says it of each."""
    for name, field in part.model_fields.items():
        parts = [one for one in (field.annotation, *get_args(field.annotation)) if _is_part(one)]
        for one in parts:
            yield from _unmarked(one)
        extra = field.json_schema_extra
        if not parts and not (isinstance(extra, dict) and extra.get("x-changes") in get_args(Mark)):
            yield name


def _is_part(one: object) -> TypeGuard[type[Part]]:
    return isinstance(one, type) and issubclass(one, Part)
