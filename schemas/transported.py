"""The options that any protocol has, by its transport."""

from __future__ import annotations

from typing import Annotated, Literal

from schemas.fields import MaybeCount, Part, marked


class Options(Part):
    """What any protocol has, by its transport."""

    events: Annotated[
        Literal["joined", "last", "all"] | None,
        marked("answers", "What of a stream of events (sse) is the answer; default: as the protocol needs it."),
    ] = None
    message: Annotated[
        Literal["json", "binary"] | None,
        marked(
            "place", "How a request travels over a websocket: as text, or as bytes; default: as the protocol has it."
        ),
    ] = None
    greeting: Annotated[
        MaybeCount, marked("place", "Messages that a websocket service says first, and that answer nothing.")
    ] = 0
