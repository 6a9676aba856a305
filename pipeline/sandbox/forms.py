"""Forms as browsers send them (multipart/form-data), read whole and in memory. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header

if TYPE_CHECKING:
    from collections.abc import Mapping

KIND: Final = b"multipart/form-data"
_IN_MEMORY: Final[Any] = {"MAX_MEMORY_FILE_SIZE": float("inf")}


class NotAFormError(ValueError):
    """The body is not a form, or not a whole one."""


class File(NamedTuple):
    """A file: what it is called, the media type that is given for it, its bytes."""

    name: str
    kind: str
    content: bytes


class Form(NamedTuple):
    """Fields and files by their fields' names; of several with one name the last."""

    fields: Mapping[str, str]
    files: Mapping[str, File]


def form_of(body: bytes, content_type: str) -> Form:
    """Read a form.

    Raises:
        NotAFormError: it is none, or its end is missing.

    """
    kind, options = parse_options_header(content_type)
    if kind != KIND:
        raise NotAFormError(f"the body is {content_type or 'of no type'}")
    fields: dict[str, str] = {}
    files: dict[str, File] = {}
    ends: list[bool] = []

    def add_field(field: Any) -> None:
        fields[_text(field.field_name)] = _text(field.value)

    def add_file(file: Any) -> None:
        content = file.file_object.getvalue()
        files[_text(file.field_name)] = File(_text(file.file_name), file.content_type or "", content)

    try:
        parser = FormParser(
            KIND.decode(),
            add_field,
            add_file,
            on_end=lambda: ends.append(True),
            boundary=options.get(b"boundary"),
            config=_IN_MEMORY,
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise NotAFormError(str(error)) from error
    if not ends:
        raise NotAFormError("the form has no end")
    return Form(fields, files)


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", "replace")
