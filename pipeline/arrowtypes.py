"""Arrow types by their names, as `pipeline.typenames` reads them. What `str` says of a type gives that type again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from pipeline.errors import JobError
from pipeline.typenames import ALIASES, NoSuchTypeError, named

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.typenames import Field, Named


def type_of(text: str) -> pa.DataType:
    """Return the type that a text names: `double`, `list<float>`, `timestamp[us, tz=UTC]`. Raises NoSuchTypeError."""
    return _type(named(text))


def types_of(columns: Mapping[str, str], key: str = "input.columns") -> dict[str, pa.DataType]:
    """Return the types declared under a key of the job file. Raises JobError for a name that Arrow does not have."""
    types: dict[str, pa.DataType] = {}
    for name, text in columns.items():
        try:
            types[name] = type_of(text)
        except NoSuchTypeError as error:
            raise JobError(f"{key}.{name}: {error}") from None
    return types


def _type(of: Named) -> pa.DataType:
    return _PLAIN[of.name] if of.name in _PLAIN else _MADE[of.name](*of.parts)


def _field(of: Field) -> pa.Field[Any]:
    return pa.field(of.name, _type(of.kind), nullable=of.nullable)


def _tensor(values: Named, shape: list[int], names: list[str] | None, order: list[int] | None) -> pa.DataType:
    return pa.fixed_shape_tensor(_type(values), shape, dim_names=names, permutation=order)


_PLAIN: Final[Mapping[str, pa.DataType]] = {
    **{alias: pa.type_for_alias(alias) for alias in ALIASES},  # type: ignore[call-overload]
    "int": pa.int64(),  # Arrow has no `int`; this one holds what the others hold, and is sent alike
    "extension<arrow.uuid>": pa.uuid(),
    "extension<arrow.bool8>": pa.bool8(),
    "extension<arrow.json>": pa.json_(),
}
_MADE: Final[Mapping[str, Callable[..., pa.DataType]]] = {
    "timestamp": pa.timestamp,
    **{f"decimal{bits}": getattr(pa, f"decimal{bits}") for bits in (32, 64, 128, 256)},
    "fixed_size_binary": pa.binary,
    "tensor": _tensor,
    "opaque": lambda storage, name, vendor: pa.opaque(_type(storage), name, vendor),
    "list": lambda item: pa.list_(_field(item)),
    "large_list": lambda item: pa.large_list(_field(item)),
    "list_view": lambda item: pa.list_view(_field(item)),
    "large_list_view": lambda item: pa.large_list_view(_field(item)),
    "fixed_size_list": lambda item, size: pa.list_(_field(item), size),
    "struct": lambda *fields: pa.struct(list(map(_field, fields))),
    "map": lambda key, item, ordered: pa.map_(_type(key), _type(item), keys_sorted=ordered),  # type: ignore[call-overload]
    "dictionary": lambda indices, values, ordered: pa.dictionary(_type(indices), _type(values), ordered),  # type: ignore[call-overload]
    "run_end_encoded": lambda ends, values: pa.run_end_encoded(_type(ends), _type(values)),  # type: ignore[type-var]
}
