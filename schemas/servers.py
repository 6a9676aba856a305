"""Options of the protocols of model servers: MindSpore, KServe, TensorFlow, MLflow, TorchServe, OpenAI."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from schemas import values
from schemas.fields import Flag, MaybeCount, MaybeTexts, Text, marked
from schemas.template import one_row, template
from schemas.transported import Options
from schemas.values import InvalidValueError, url_name


def _each_row(value: object) -> object:
    """Take a template of what one row is sent as."""
    if not one_row(template(value)):
        raise InvalidValueError("$rows in it; allowed: what one row is sent as")
    return value


def _parameters(value: object, ours: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Take further keys of a request, other than those that have their own option; all constants."""
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise InvalidValueError(
            f"{values.shown(value)} is not a mapping; allowed: names of parameters with their values"
        )
    for name in sorted(ours & set(value)):
        raise InvalidValueError(
            f"{name!r} is not allowed here; allowed: parameters other than {', '.join(sorted(ours))}"
        )
    return value


def _of_chat(value: object) -> dict[str, Any]:
    return _parameters(value, _CHAT)


def _of_embeddings(value: object) -> dict[str, Any]:
    return _parameters(value, frozenset({"model", "input"}))


_CHAT: Final = frozenset({"model", "messages", "stream", "stream_options", "n"})
_OBJECT: Final = WithJsonSchema({"type": "object"})
_ANY_JSON: Final = WithJsonSchema({"type": ["object", "array", "string"]})

TensorType = Literal[
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "fp16", "fp32", "fp64", "bool", "str", "bytes",
]  # fmt: skip
UrlName = Annotated[str, BeforeValidator(url_name), WithJsonSchema({"type": "string", "pattern": r"^[^/:?#%\s]+$"})]
EachRow = Annotated[Any, BeforeValidator(_each_row), _ANY_JSON]


class NamedOptions(Options):
    """Which model of a server is asked, where `service.url` is the server's base."""

    model: Annotated[Text | None, marked("answers", "The model's name.")] = None


class VersionedOptions(NamedOptions):
    """Which of a model's versions is asked."""

    version: Annotated[Text | None, marked("answers", "The model's version; default: the server's own choice.")] = None


class MindSporeOptions(Options):
    """A method of a servable, where `service.url` is the server's base; and how columns travel."""

    model: Annotated[UrlName | None, marked("answers", "The servable's name.")] = None
    version: Annotated[MaybeCount | None, marked("answers", "Its version; default: the newest.")] = None
    method: Annotated[UrlName | None, marked("answers", "The method's name.")] = None
    types: Annotated[
        dict[str, TensorType], marked("answers", "Column -> type: sent as base64 tensors of that type, with shape.")
    ] = Field(default_factory=dict)


class RowsOptions(Options):
    """How a row is sent, where rows stand in a list."""

    rows: Annotated[
        Literal["objects", "lists", "values"],
        marked("answers", "A row is an object of its columns, a list of their values, or the value of its one column."),
    ] = "objects"


class KServeOptions(NamedOptions, RowsOptions):
    """KServe's V1 protocol."""


class TensorFlowOptions(VersionedOptions, RowsOptions):
    """TensorFlow Serving's REST interface, in its row form or its column form."""

    key: Annotated[
        Literal["instances", "inputs"],
        marked("answers", "What rows are listed under: instances (row form), or inputs (column form, in fewer bytes)."),
    ] = "instances"
    label: Annotated[Text | None, marked("answers", "The version's label, instead of its number.")] = None
    signature: Annotated[Text | None, marked("answers", "The signature's name; default: serving_default.")] = None


class OpenInferenceOptions(VersionedOptions):
    """The Open Inference Protocol (V2): KServe, MLServer, Triton, OpenVINO."""

    tensor: Annotated[
        Text | None, marked("answers", "All columns are one tensor of this name; default: a tensor a column.")
    ] = None
    outputs: Annotated[MaybeTexts, marked("answers", "The outputs asked for; default: the model's own choice.")] = ()
    parameters: Annotated[
        Annotated[dict[str, Any], BeforeValidator(_parameters), _OBJECT],
        marked("answers", "Parameters of the request, such as content_type: pd for columns of a table."),
    ] = Field(default_factory=dict)
    binary: Annotated[
        Flag, marked("answers", "Whether tensors travel as bytes, by the binary extension: FP16, bytes, NaN, less CPU.")
    ] = False


class TorchServeOptions(VersionedOptions, RowsOptions):
    """TorchServe, and multi-model-server, with a handler that takes JSON."""


class MlflowOptions(RowsOptions):
    """What `mlflow models serve` speaks."""

    key: Annotated[
        Literal["dataframe_records", "dataframe_split", "instances", "inputs"],
        marked("answers", "What rows are listed under: a table (split: names once, in fewer bytes), or tensors."),
    ] = "dataframe_records"
    params: Annotated[
        Annotated[dict[str, Any], BeforeValidator(_parameters), _OBJECT],
        marked("answers", "Parameters of the prediction, by the model's signature."),
    ] = Field(default_factory=dict)


class ChatOptions(Options):
    """OpenAI's chat completions, one row a request."""

    model: Annotated[Text, marked("answers", "The model's name.")]
    messages: Annotated[EachRow, marked("answers", 'The messages, with {"$column": name} in them.')]
    stream: Annotated[Flag, marked("place", "Whether the reply comes as a stream of events.")] = False
    parameters: Annotated[
        Annotated[dict[str, Any], BeforeValidator(_of_chat), _OBJECT],
        marked("answers", "Further keys of the request, such as temperature."),
    ] = Field(default_factory=dict)


class EmbeddingsOptions(Options):
    """OpenAI's embeddings, many rows a request."""

    model: Annotated[Text, marked("answers", "The model's name.")]
    input: Annotated[EachRow, marked("answers", 'What is embedded of a row, such as {"$column": "text"}.')]
    parameters: Annotated[
        Annotated[dict[str, Any], BeforeValidator(_of_embeddings), _OBJECT],
        marked("answers", "Further keys of the request, such as dimensions."),
    ] = Field(default_factory=dict)
