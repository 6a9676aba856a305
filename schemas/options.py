"""The protocols' options (`service.options`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, WrapSerializer, WrapValidator
from pydantic_core import PydanticKnownError

from schemas import plugins
from schemas.fields import Flag, Form, JmesPath, Template, Text, marked
from schemas.servers import (
    ChatOptions,
    EmbeddingsOptions,
    KServeOptions,
    MindSporeOptions,
    MlflowOptions,
    OpenInferenceOptions,
    TensorFlowOptions,
    TorchServeOptions,
)
from schemas.transported import Options

if TYPE_CHECKING:
    from pydantic import (
        SerializationInfo,
        SerializerFunctionWrapHandler,
        ValidationInfo,
        ValidatorFunctionWrapHandler,
    )


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


AnyOptions = (
    ModelArtsOptions
    | FileOptions
    | JsonOptions
    | MindSporeOptions
    | KServeOptions
    | ChatOptions
    | EmbeddingsOptions
    | OpenInferenceOptions
    | TensorFlowOptions
    | MlflowOptions
    | TorchServeOptions
)

OPTIONS: Final[dict[str, type[Options]]] = {
    "modelarts": ModelArtsOptions,
    "file": FileOptions,
    "json": JsonOptions,
    "mindspore": MindSporeOptions,
    "kserve": KServeOptions,
    "openai-chat": ChatOptions,
    "openai-embeddings": EmbeddingsOptions,
    "open-inference": OpenInferenceOptions,
    "tensorflow": TensorFlowOptions,
    "mlflow": MlflowOptions,
    "torchserve": TorchServeOptions,
}
"""By `service.protocol`."""


def options_of(protocol: str) -> type[Options]:
    """Return the class of a protocol's options. Raises InvalidValueError for a package's that cannot be used."""
    return OPTIONS.get(protocol) or plugins.plugin_of(protocol).options


def known() -> list[str]:
    """Name the protocols: ours, then those of installed packages."""
    return list(dict.fromkeys([*OPTIONS, *plugins.given()]))


def _protocol(value: object) -> str:
    """Take the name of a protocol of ours, or of an installed package; no package may take one of ours."""
    if not isinstance(value, str) or value not in known():
        raise PydanticKnownError("literal_error", {"expected": " or ".join(map(repr, known()))})
    if value in OPTIONS and value in plugins.given():
        raise plugins.taken(value)
    options_of(value)
    return value


ProtocolName = Annotated[str, BeforeValidator(_protocol), WithJsonSchema({"enum": list(OPTIONS), "type": "string"})]


def _of_protocol(given: Any, one_of_ours: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Options:
    """Check options as those of the protocol that is named beside them."""
    if "protocol" not in info.data:  # it is wrong, and blamed already
        return ModelArtsOptions()
    options = given if isinstance(given, Options) else options_of(info.data["protocol"]).model_validate(given)
    return one_of_ours(options) if info.data["protocol"] in OPTIONS else options


def _written(options: Any, one_of_ours: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
    if isinstance(options, Options) and type(options) not in OPTIONS.values():
        return options.model_dump(mode=info.mode, by_alias=info.by_alias)
    return one_of_ours(options)


OptionsOfProtocol = Annotated[AnyOptions, WrapValidator(_of_protocol), WrapSerializer(_written)]
