"""Reads forms with a parser that others wrote."""

from __future__ import annotations

from python_multipart.multipart import FormParser

BOUNDARY = "0123456789abcdef" * 2


def parsed(body, boundary=BOUNDARY):
    """Read a form with somebody else's parser: its fields, and (field, name, type, bytes) of its files."""
    fields, files = [], []
    parser = FormParser(
        "multipart/form-data",
        lambda field: fields.append((field.field_name.decode(), (field.value or b"").decode())),
        lambda file: files.append(
            (file.field_name.decode(), file.file_name.decode(), file.content_type, file.file_object.getvalue())
        ),
        boundary=boundary,
        config={"MAX_MEMORY_FILE_SIZE": float("inf")},
    )
    parser.write(body)
    parser.finalize()
    return fields, files
