"""Small JSON bodies of requests."""

from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from app.errors import BadRequest
from app.web.body import Body
from app.web.services import Services

_MOST_BYTES: Final = 64 * 1024
M = TypeVar("M", bound=BaseModel)


async def json_body(request: Request[Services], model: type[M], example: str, *, optional: bool = False) -> M:
    """Read and validate a body of at most 64 KiB; `example` shows a client what it looks like.

    If it is optional, no body is as good as `{}`.

    Raises:
        BadRequest: the body is not what the model describes.
        UploadError: what `Body` raises.
    """
    settings = request.state["settings"]
    timeout = settings.request_timeout.total_seconds()
    with Body(request, limit=_MOST_BYTES, min_rate=settings.min_upload_rate, timeout=timeout) as body:
        text = b"".join([block async for block in body])
    try:
        return model.model_validate_json(text or b"{}" if optional else text)
    except ValidationError as error:
        raise BadRequest(f"expected a JSON body such as {example}") from error
