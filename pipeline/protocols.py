"""The protocols by name: adding one is an adapter in a file of its own, and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pipeline.modelarts import ModelArts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.converse import Adapter
    from schemas.job import Service

ADAPTERS: Final[Mapping[str, Callable[[Any], Adapter]]] = {
    "modelarts": ModelArts,
}
"""By `service.protocol`: what makes an adapter of `service.options`."""


def adapter_of(service: Service) -> Adapter:
    """Return what speaks the job's protocol."""
    return ADAPTERS[service.protocol](service.options)
