"""The ways in, as a job file names them (`service.auth`): which secrets there are, and where they are found."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from schemas.fields import AuthUrl, HeaderName, Hidden, Part, Plain, Word, marked

_WAY: Final = marked("place", "How the service lets us in.")


class NoAuth(Part):
    """Nothing is asked for: a high-speed VPC channel, or a local server."""

    type: Annotated[Literal["none"], _WAY] = "none"


class TokenAuth(Part):
    """An IAM token: asked for with a password and a project, or given. `None` is what the job does not need."""

    type: Annotated[Literal["token"], _WAY] = "token"
    auth_url: Annotated[AuthUrl | None, marked("place", "IAM endpoint, ends in /v3; default: OS_AUTH_URL.")] = None
    user: Annotated[Word | None, marked("place", "IAM user name; default: OS_USERNAME.")] = None
    domain: Annotated[Word | None, marked("place", "The user's domain (account); default: OS_USER_DOMAIN_NAME.")] = None
    project: Annotated[Word | None, marked("place", "Project name; default: OS_PROJECT_NAME.")] = None
    project_id: Annotated[Word | None, marked("place", "Project ID, instead of a name; default: OS_PROJECT_ID.")] = None
    password: Annotated[Hidden | None, marked("place", "Reference to the password; default: OS_PASSWORD.")] = None
    token: Annotated[Hidden | None, marked("place", "Reference to a token, used as given.")] = None


class AkSkAuth(Part):
    """Every attempt is signed with an access key (SDK-HMAC-SHA256)."""

    type: Annotated[Literal["aksk"], _WAY] = "aksk"
    access_key: Annotated[Word, marked("place", "Access key (AK), or a reference to it.")]
    secret_key: Annotated[Hidden, marked("place", "Reference to the secret key (SK).")]
    security_token: Annotated[Hidden | None, marked("place", "Reference to a temporary key's security token.")] = None


class AppCodeAuth(Part):
    """An AppCode, sent as it is."""

    type: Annotated[Literal["app-code"], _WAY] = "app-code"
    code: Annotated[Hidden, marked("place", "Reference to the AppCode.")]


class AppKeyAuth(Part):
    """Every attempt is signed with an application's key (SDK-HMAC-SHA256)."""

    type: Annotated[Literal["app-key"], _WAY] = "app-key"
    key: Annotated[Word, marked("place", "The key: AppKey, or a reference to it.")]
    secret: Annotated[Hidden, marked("place", "Reference to the AppSecret.")]


class ApiKeyAuth(Part):
    """An API key, sent in a header."""

    type: Annotated[Literal["api-key"], _WAY] = "api-key"
    key: Annotated[Hidden, marked("place", "The key: a reference to it.")]
    header: Annotated[HeaderName, marked("place", "The header that carries it.")] = "Authorization"
    prefix: Annotated[Plain, marked("place", "What stands before the key.")] = "Bearer "


AUTHS: Final[dict[str, type[Part]]] = {
    "none": NoAuth,
    "token": TokenAuth,
    "aksk": AkSkAuth,
    "app-code": AppCodeAuth,
    "app-key": AppKeyAuth,
    "api-key": ApiKeyAuth,
}
"""By `service.auth.type`."""

Auth = Annotated[
    NoAuth | TokenAuth | AkSkAuth | AppCodeAuth | AppKeyAuth | ApiKeyAuth,
    Field(discriminator="type"),
]
