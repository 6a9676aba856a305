"""Templates of JSON bodies: which columns stand where, and that nothing in them is a slip; and paths to answers.

{"$column": name}   the column's value          {"$base64": name}   its bytes, or its text's, as base64
{"$rows": template} a list with one such template per row; at most once, and never inside itself
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from schemas.values import InvalidValueError, shown, text

if TYPE_CHECKING:
    from collections.abc import Iterator

COLUMN: Final = "$column"
BASE64: Final = "$base64"
ROWS: Final = "$rows"
MARKS: Final = (COLUMN, BASE64, ROWS)

_PASSING: Final = frozenset({"not_null", "reverse", "sort", "sort_by", "to_array"})
"""Functions of JMESPath that give a list with the items that they get."""


def template(value: object) -> object:
    """Take a template with at least one column in it."""
    found = list(_marks(value))
    rows = [inner for mark, inner in found if mark == ROWS]
    if len(rows) > 1:
        raise InvalidValueError(f"{ROWS} is in it {len(rows)} times; allowed: once, and not inside itself")
    if rows and not any(True for _ in _marks(rows[0])):
        raise InvalidValueError(f"no column in {ROWS}; allowed: " + '{"$rows": {"x": {"$column": "x"}}}')
    outside = len(found) - 1 - len(list(_marks(rows[0]))) if rows else 0
    if outside:
        raise InvalidValueError(f"a column outside of {ROWS}, where there is no row; put it inside")
    if not found:
        raise InvalidValueError('no column in it; allowed: JSON with {"$column": name} or {"$base64": name}')
    return value


def jmes_path(value: object) -> str:
    """Take a JMESPath whose functions are there."""
    import jmespath
    from jmespath.exceptions import JMESPathError
    from jmespath.functions import Functions

    path = text(value)
    try:
        tree = jmespath.compile(path).parsed
    except JMESPathError as error:
        why = str(error).partition("\n")[0].removesuffix(", for expression:")
        raise InvalidValueError(f"{shown(path)} is not a JMESPath: {why}") from None
    for name in _functions(tree):
        if name not in Functions.FUNCTION_TABLE:
            allowed = ", ".join(sorted(Functions.FUNCTION_TABLE))
            raise InvalidValueError(f"{shown(path)} calls {name}(), which JMESPath has not; allowed: {allowed}")
    return path


def _functions(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        if tree.get("type") == "function_expression":
            yield tree["value"]
        yield from _functions(tree.get("children"))
    elif isinstance(tree, list):
        for one in tree:
            yield from _functions(one)


def flattens_answers(path: str) -> bool:
    """Whether a path joins the lists that rows have, so that nobody can tell any more which item is whose."""
    import jmespath

    return _flattens(jmespath.compile(path).parsed, behind=False)


def _flattens(tree: Any, *, behind: bool) -> bool:
    """Look for a flatten of what a projection gives, or, `behind` one, of what comes in."""
    kind, children = tree["type"], tree["children"]
    if kind == "flatten" and (_projects(children[0]) or (behind and children[0]["type"] == "identity")):
        return True
    if kind == "pipe":
        left, right = children
        return _flattens(left, behind=behind) or _flattens(right, behind=_projects(left))
    return any(_flattens(one, behind=behind) for one in children)


def _projects(tree: Any) -> bool:
    """Whether what a path gives is a list with what was found in each of many."""
    kind, children = tree["type"], tree["children"]
    if kind == "function_expression":
        return tree["value"] == "map" or (tree["value"] in _PASSING and any(map(_projects, children)))
    if kind in {"pipe", "subexpression", "index_expression"}:  # whatever it was before: the last step may pick one
        return _projects(children[-1])
    if kind in {"or_expression", "and_expression"}:
        return any(map(_projects, children))
    projection: bool = kind.endswith("projection")
    return projection


def columns(value: object) -> tuple[str, ...]:
    """Name the columns of a template, each once, as they come."""
    return tuple(dict.fromkeys(inner for mark, inner in _marks(value) if mark != ROWS))


def one_row(value: object) -> bool:
    """Whether the template takes one row only: there is no `$rows` in it."""
    return all(mark != ROWS for mark, _ in _marks(value))


def mark_of(value: object) -> tuple[str, Any] | None:
    """Return which mark a value is, and what it marks; None for what stands as it is."""
    if not isinstance(value, dict) or not any(isinstance(key, str) and key.startswith("$") for key in value):
        return None
    [(key, inner), *others] = value.items()
    if others or key not in MARKS:
        raise InvalidValueError(f"{shown(value)} is not allowed; allowed: one of {', '.join(MARKS)}, alone")
    if key != ROWS and not isinstance(inner, str):
        raise InvalidValueError(f"{key}: {shown(inner)} is not the name of a column; put it in quotes")
    return key, inner


def _marks(value: object) -> Iterator[tuple[str, Any]]:
    found = mark_of(value)
    if found:
        yield found
        if found[0] == ROWS:
            yield from _marks(found[1])
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _marks(one)
