"""The protocols' options (`service.options`), and those of the transports that any protocol may use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from schemas.fields import Flag, Form, JmesPath, MaybeCount, Part, Template, Text, marked
from schemas.values import url_name

if TYPE_CHECKING:
    from pydantic import ValidationInfo


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


class ModelArtsOptions(Options):
    """The form of a ModelArts request."""

    wrapper: Annotated[
        Literal["data", "none"],
        marked("answers", "`data`: rows under data.req_data; `none`: under req_data (XGBoost-type models)."),
    ] = "data"
    meta: Annotated[Flag, marked("answers", "Whether meta.uuid is sent.")] = True


class FileOptions(Options):
    """One file a request, as a form that is filled in by a browser."""

    field: Annotated[Text, marked("answers", "The input's name, such as images.")]
    form: Annotated[
        Form, marked("answers", 'Further fields: name -> {"$column": column}, or a text that names one, or a constant.')
    ] = Field(default_factory=dict)
    part_type: Annotated[Text | None, marked("answers", "The file's media type; default: guessed from its name.")] = (
        None
    )
    content: Annotated[Text, marked("answers", "The column with the bytes.")] = "content"


class JsonOptions(Options):
    """Any JSON, made from a template."""

    body: Annotated[
        Template, marked("answers", 'Any JSON with {"$column": name}, {"$base64": name} and {"$rows": {...}} in it.')
    ]
    answer: Annotated[
        JmesPath | None, marked("answers", "JMESPath to the answer, or with $rows to the list of answers.")
    ] = None
    method: Annotated[Literal["POST", "PUT"], marked("answers", "The HTTP method.")] = "POST"


TensorType = Literal[
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "fp16", "fp32", "fp64", "bool", "str", "bytes",
]  # fmt: skip
UrlName = Annotated[str, BeforeValidator(url_name), WithJsonSchema({"type": "string", "pattern": r"^[^/:?#%\s]+$"})]


class MindSporeOptions(Options):
    """A method of a servable, where `service.url` is the server's base; and how columns travel."""

    model: Annotated[UrlName | None, marked("answers", "The servable's name.")] = None
    version: Annotated[MaybeCount | None, marked("answers", "Its version; default: the newest.")] = None
    method: Annotated[UrlName | None, marked("answers", "The method's name.")] = None
    types: Annotated[
        dict[str, TensorType], marked("answers", "Column -> type: sent as base64 tensors of that type, with shape.")
    ] = Field(default_factory=dict)


AnyOptions = ModelArtsOptions | FileOptions | JsonOptions | MindSporeOptions

OPTIONS: Final[dict[str, type[Options]]] = {
    "modelarts": ModelArtsOptions,
    "file": FileOptions,
    "json": JsonOptions,
    "mindspore": MindSporeOptions,
}
"""By `service.protocol`."""


def _of_protocol(given: Any, info: ValidationInfo) -> Any:
    """Check options as those of the protocol that is named beside them."""
    if "protocol" not in info.data:  # it is wrong, and blamed already
        return ModelArtsOptions()
    return given if isinstance(given, Options) else OPTIONS[info.data["protocol"]].model_validate(given)


OptionsOfProtocol = Annotated[AnyOptions, BeforeValidator(_of_protocol)]
