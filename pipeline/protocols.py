"""The protocols by name: adding one is an adapter in a file of its own, and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pipeline.modelarts import ModelArts
from pipeline.multipart import Multipart
from pipeline.pack import MAX_ROWS
from pipeline.template import Template

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.converse import Adapter
    from schemas.job import Service

ADAPTERS: Final[Mapping[str, Callable[[Any, str], Adapter]]] = {
    "modelarts": lambda options, _: ModelArts(options),
    "file": Multipart,
    "json": lambda options, _: Template(options),
}
"""By `service.protocol`: what makes an adapter of `service.options` and a boundary."""

UNSENT: Final = "-" * 32
"""A boundary for bodies that nobody will see: as long as one that is sent."""


def adapter_of(service: Service, boundary: str = UNSENT) -> Adapter:
    """Return what speaks the job's protocol; who sends gives a `boundary` that no content can have guessed."""
    return ADAPTERS[service.protocol](service.options, boundary)


def most_rows(service: Service) -> int:
    """Return how many rows a request may have: by the protocol, and by the job file."""
    return min(adapter_of(service).most_rows, service.limits.rows or MAX_ROWS)
