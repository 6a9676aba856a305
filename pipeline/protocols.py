"""The protocols by name: adding one is an adapter in a file of its own, and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import jmespath

from pipeline.modelarts import ModelArts
from schemas.options import JsonOptions

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
    options = service.options
    if picker_of(service) and isinstance(options, JsonOptions):  # the answer is found in each event, and joined
        options = options.model_copy(update={"answer": None})
    return ADAPTERS[service.protocol](options)


def picker_of(service: Service) -> Callable[[Any], Any] | None:
    """Return what finds a piece of the answer in an event, where pieces are joined and the job says how."""
    options = service.options
    joined = service.way == "sse" and options.events in {None, "joined"}
    if not (joined and isinstance(options, JsonOptions) and options.answer):
        return None
    search: Callable[[Any], Any] = jmespath.compile(options.answer).search
    return search
