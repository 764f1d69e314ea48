"""The Open Inference Protocol (KServe v2), so that clients made for Triton or KServe work here."""

import json
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from amlr import __version__
from amlr.runtime.results import Post
from amlr.serving.answers import in_turn, service_of, tag_posts
from amlr.serving.encoding import json_bytes
from amlr.serving.json_reading import is_light, parse
from amlr.serving.parsing import PreparedPost
from amlr.serving.problems import ApiError
from amlr.serving.schemas import V2InferAnswer, V2Live, V2Model, V2Ready, V2Server, errors
from amlr.serving.service import TaggingService
from amlr.serving.v2_tensors import InferRequest, encode_output, parse_infer

router = APIRouter(prefix="/v2", tags=["open inference protocol"])
_VERSION = "1"
_HEADER_LENGTH = "inference-header-content-length"


@router.get(
    "",
    summary="About the server",
    response_model=V2Server,
    response_description="Name, version and extensions.",
)
async def server() -> dict[str, Any]:
    """Name, version and extensions."""
    return {"name": "amlr-serve", "version": __version__, "extensions": ["binary_tensor_data"]}


@router.get(
    "/health/live",
    summary="Is the process alive?",
    response_model=V2Live,
    response_description="It is.",
)
async def live() -> dict[str, bool]:
    """Always true where it can be answered at all."""
    return {"live": True}


@router.get(
    "/health/ready",
    summary="May requests be sent?",
    response_model=V2Ready,
    response_description="Ready.",
    responses={503: {"model": V2Ready, "description": "Not ready."}},
)
async def ready(request: Request) -> Response:
    """True once loaded, checked, warmed up and measured; false while failing or stopping."""
    service = service_of(request)
    value = {"ready": service.ready, "state": str(service.state)}
    return Response(json.dumps(value), 200 if service.ready else 503, media_type="application/json")


@router.get(
    "/models/{name}",
    summary="Inputs and outputs",
    response_model=V2Model,
    response_description="Names, types and shapes of the tensors.",
    responses=errors(401, 404, 422, v2=True),
)
@router.get("/models/{name}/versions/{version}", include_in_schema=False)
async def model(request: Request, name: str, version: str = _VERSION) -> dict[str, Any]:
    """`text` and, where there are pictures, `image`; `result` holds JSON."""
    service = _model(request, name, version)
    return {
        "name": service.model_name,
        "versions": [_VERSION],
        "platform": "amlr",
        "inputs": [
            {"name": "text", "datatype": "BYTES", "shape": [-1]},
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [{"name": "result", "datatype": "BYTES", "shape": [-1]}],
        "parameters": _provenance(service),
    }


def _provenance(service: TaggingService) -> dict[str, str]:
    """The hash of the bundle in service: deployments change it under traffic."""
    bundle = getattr(service.engine, "bundle", None)
    return {} if bundle is None else {"manifest_sha256": str(bundle.manifest_sha256)}


@router.get(
    "/models/{name}/ready",
    summary="May requests be sent to this model?",
    response_model=V2Ready,
    response_description="Ready.",
    responses={
        **errors(401, 404, 422, v2=True),
        503: {"model": V2Ready, "description": "Not ready."},
    },
)
@router.get("/models/{name}/versions/{version}/ready", include_in_schema=False)
async def model_ready(request: Request, name: str, version: str = _VERSION) -> Response:
    """As the server's readiness: there is one model."""
    _model(request, name, version)
    return await ready(request)


@router.post(
    "/models/{name}/infer",
    summary="Tag a batch of posts",
    response_model=V2InferAnswer,
    response_description="The tensor `result`.",
    responses=errors(400, 401, 404, 408, 413, 415, 422, 429, 503, v2=True),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/V2Infer"}}},
        }
    },
)
@router.post("/models/{name}/versions/{version}/infer", include_in_schema=False)
async def infer(request: Request, name: str, version: str = _VERSION) -> Response:
    """One result a post, as JSON text. Binary tensor data is understood both ways."""
    service = _model(request, name, version)
    body = await request.body()
    length = _header_length(request)
    parsed = await parse(parse_infer, body, length, inline=is_light(body))
    results = await _tag(request, parsed)
    content, head = encode_output(parsed, service.model_name, _VERSION, results)
    if head is None:
        return Response(content, media_type="application/json")
    return Response(
        content,
        media_type="application/octet-stream",
        headers={"Inference-Header-Content-Length": str(head)},
    )


async def _tag(request: Request, parsed: InferRequest) -> list[bytes]:
    limits = service_of(request).settings.limits
    if len(parsed.texts) > limits.max_posts:
        raise ApiError(413, "too_many_posts", f"at most {limits.max_posts} posts fit one request")
    for text in parsed.texts:
        if len(text) > limits.max_text_chars:
            message = f"a text may have at most {limits.max_text_chars} characters"
            raise ApiError(400, "text_too_long", message)
    for image in parsed.images:
        if image is not None and len(image) > limits.max_image_bytes:
            message = f"a picture may have at most {limits.max_image_bytes} bytes"
            raise ApiError(413, "image_too_large", message)
    posts = [
        PreparedPost(post=Post(text, image))
        for text, image in zip(parsed.texts, parsed.images, strict=True)
    ]
    answers, _ = await tag_posts(request, posts, parsed.deadline_s)
    size = sum(len(answer["entities"]) for answer in answers)
    return await in_turn(lambda: list(map(json_bytes, answers)), size=size)


def _model(request: Request, name: str, version: str) -> TaggingService:
    service = service_of(request)
    if name != service.model_name or version != _VERSION:
        raise ApiError(404, "model_unknown", f"the only model is '{service.model_name}', version 1")
    return service


def _header_length(request: Request) -> int | None:
    text = request.headers.get(_HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise ApiError(400, "request_invalid", f"{_HEADER_LENGTH} must be a whole number")
    return int(text)
