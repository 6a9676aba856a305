"""The protocols with their options and a job file each, as `bulkscore protocols` shows them."""

from __future__ import annotations

import textwrap
from importlib.resources import files
from typing import TYPE_CHECKING, Any, get_args

from pipeline.adapter import Adapter
from pipeline.addresses import PATHS
from schemas import plugins
from schemas.options import OPTIONS
from schemas.transported import Options
from schemas.values import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic.fields import FieldInfo


def catalogue() -> list[dict[str, Any]]:
    """Return of each protocol its name, what it is, its options, and a whole job file as an example.

    Those of other packages name them; one that cannot be used has a `problem` instead of all else.
    """
    ours = [_entry(name, _told(options), options, url_of(name), example(name)) for name, options in OPTIONS.items()]
    return [*ours, *(_foreign(name) for name in plugins.given())]


def _entry(name: str, about: str, options: type[Options], url: str, text: str) -> dict[str, Any]:
    described = _described(options, Options.model_fields)
    return {"protocol": name, "about": about, "url": url, "options": described, "example": text}


def _foreign(name: str) -> dict[str, Any]:
    packages = plugins.packages_of(name)
    try:
        if name in OPTIONS:
            raise plugins.taken(name)
        plugin = plugins.plugin_of(name)
        about = ("" if plugin.options is Options else _told(plugin.options)) or _told(_adapter_of(name, plugin))
    except InvalidValueError as error:
        return {"protocol": name, "package": packages, "problem": str(error)}
    return {**_entry(name, about, plugin.options, plugin.url, plugin.example), "package": packages}


def _told(kind: type | None) -> str:
    """Return the first line of what a class says of itself, if it does."""
    return next(iter(((kind and kind.__doc__) or "").strip().splitlines()), "")


def _adapter_of(name: str, plugin: plugins.Plugin) -> type | None:
    """Return the class of a package's adapters, where no option's value is needed to know it."""
    kind: Any = plugin.adapter
    if not isinstance(kind, type) and plugin.options is Options:
        kind = type(plugins.made(name, Options()))
    return kind if isinstance(kind, type) and kind is not Adapter else None


def url_of(protocol: str) -> str:
    """Say what `service.url` is."""
    path = PATHS.get(protocol)
    return f"a server's base, or a URL that ends as {path.example} does" if path else "the full URL to call"


def transport_options() -> list[dict[str, Any]]:
    """Return the options that any protocol has, by its transport."""
    return _described(Options, ())


def example(protocol: str) -> str:
    """Return a job file that calls a service by this protocol."""
    return (files("schemas") / "examples" / f"{protocol}.yaml").read_text("utf-8")


def _described(options: type[Options], without: Iterable[str]) -> list[dict[str, Any]]:
    shown = {name: field for name, field in options.model_fields.items() if name not in without}
    return [_option(name, field) for name, field in shown.items()]


def _option(name: str, field: FieldInfo) -> dict[str, Any]:
    required = field.is_required()
    default = None if required else field.get_default(call_default_factory=True)
    allowed = [one for one in get_args(field.annotation) if isinstance(one, str)]
    about = {"name": name, "required": required, "default": default, "about": field.description or ""}
    return about | {"allowed": allowed} if allowed else about


def in_words() -> str:
    """Say it all for people."""
    parts = ["\n".join(_block(one)) for one in catalogue()]
    return "\n\n".join([*parts, "\n".join(["any, by its transport:", *_lines(transport_options())])])


def _lines(options: Iterable[dict[str, Any]]) -> list[str]:
    return [f"  {one['name']}: {one['about']}{_by_default(one)}" for one in options]


def _by_default(option: dict[str, Any]) -> str:
    if option["required"]:
        return " Required."
    default = option["default"]
    return "" if default is None or "default:" in option["about"] else f" Default: {_shown(default)}."


def _shown(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else "none" if default == {} else str(default)


def _block(protocol: dict[str, Any]) -> list[str]:
    of = f" (of the package {protocol['package']})" if "package" in protocol else ""
    if "problem" in protocol:
        return [f"{protocol['protocol']}{of} cannot be used:", f"  {protocol['problem']}"]
    return [
        f"{protocol['protocol']}{of}: {protocol['about']}",
        f"  service.url: {protocol['url']}",
        *_lines(protocol["options"]),
        *(["", textwrap.indent(protocol["example"].rstrip(), "    ")] if protocol["example"] else []),
    ]
