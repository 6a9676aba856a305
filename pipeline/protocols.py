"""The protocols by name: adding one is an adapter in a file of its own, and a line here."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import jmespath

from pipeline.adapter import Adapter
from pipeline.binaryinference import BinaryInference
from pipeline.chat import Chat
from pipeline.errors import JobError
from pipeline.foreign import Foreign
from pipeline.mindspore import MindSpore
from pipeline.modelarts import ModelArts
from pipeline.multipart import Messages, Multipart
from pipeline.openai import Embeddings
from pipeline.openinference import OpenInference
from pipeline.pack import MAX_ROWS
from pipeline.rowlists import DIALECTS, RowLists
from pipeline.template import Template
from schemas import plugins
from schemas.options import JsonOptions, ModelArtsOptions
from schemas.values import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from schemas.job import Service


def _row_lists(protocol: str, options: Any, _: str) -> Adapter:
    return RowLists(protocol, options)


ADAPTERS: Final[Mapping[str, Callable[[Any, str], Adapter]]] = {
    "modelarts": lambda options, _: ModelArts(options),
    "file": Multipart,
    "json": lambda options, _: Template(options),
    "mindspore": lambda options, _: MindSpore(options),
    "open-inference": lambda options, _: (BinaryInference if options.binary else OpenInference)(options),
    "openai-chat": lambda options, _: Chat(options),
    "openai-embeddings": lambda options, _: Embeddings(options),
    **{name: partial(_row_lists, name) for name in DIALECTS},
}
"""By `service.protocol`: what makes an adapter of `service.options` and a boundary."""

MESSAGES: Final[Mapping[str, Callable[[Any, str], Adapter]]] = {"file": Messages}
"""Those whose requests have another form over a websocket."""

MENDS: Final[Mapping[str, str]] = {
    "file": "service.options.field or form",
    "json": "service.options.body or answer",
    "openai-chat": "service.options.messages",
    "openai-embeddings": "service.options.input",
}
"""The keys that say what a request looks like, and its reply; where none are named, those of most protocols."""

UNSENT: Final = "-" * 32
"""A boundary for bodies that nobody will see: as long as one that is sent."""


def adapter_of(service: Service, boundary: str = UNSENT, promised: Collection[str] = ()) -> Adapter:
    """Return what speaks the job's protocol; who sends gives a `boundary` that no content can have guessed.

    `promised` are fields of which some answer of a ModelArts reply has one, where the schema promises any.
    """
    options = service.options
    if promised and isinstance(options, ModelArtsOptions):
        return ModelArts(options, promised)
    if picker_of(service) and isinstance(options, JsonOptions):  # the answer is found in each event, and joined
        options = options.model_copy(update={"answer": None})
    if service.protocol not in ADAPTERS:
        return _plugged(service.protocol, options)
    adapter = MESSAGES.get(service.protocol) if service.way == "websocket" else None
    return (adapter or ADAPTERS[service.protocol])(options, boundary)


def _plugged(protocol: str, options: Any) -> Adapter:
    """Return an adapter of another package. Raises JobError, which names it, where it gives none."""
    try:
        adapter = plugins.made(protocol, options)
        if not isinstance(adapter, Adapter):
            raise plugins.unusable(protocol, f"makes a {type(adapter).__name__}; allowed: an Adapter")
    except InvalidValueError as error:
        raise JobError(f"service.protocol: {error}") from None
    return Foreign(protocol, adapter)


def picker_of(service: Service) -> Callable[[Any], Any] | None:
    """Return what finds a piece of the answer in an event, where pieces are joined and the job says how.

    An event that the path cannot be applied to, such as its usage counts, has no piece: None.
    """
    options = service.options
    joined = service.way == "sse" and options.events in {None, "joined"}
    if not (joined and isinstance(options, JsonOptions) and options.answer):
        return None
    search = jmespath.compile(options.answer).search

    def pick(value: Any) -> Any:
        try:
            return search(value)
        except (ValueError, TypeError):  # what JMESPath raises
            return None

    return pick


def most_rows(service: Service) -> int:
    """Return how many rows a request may have: by the protocol, and by the job file."""
    return min(adapter_of(service).most_rows, service.limits.rows or MAX_ROWS)
