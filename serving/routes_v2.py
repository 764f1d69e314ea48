"""The Open Inference Protocol (KServe v2), so that clients made for Triton or KServe work here."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from amlr import __version__
from amlr.runtime.results import Post
from amlr.serving.answers import in_turn, service_of, tag_posts
from amlr.serving.encoding import json_bytes
from amlr.serving.guard import Route
from amlr.serving.json_reading import is_light, parse
from amlr.serving.parsing import PreparedPost
from amlr.serving.problems import ApiError
from amlr.serving.service import TaggingService
from amlr.serving.v2_tensors import InferRequest, encode_output, parse_infer

_VERSION = "1"
_HEADER_LENGTH = "inference-header-content-length"


async def server(_: Request) -> Response:
    """Name, version and extensions."""
    extensions = ["binary_tensor_data"]
    return JSONResponse({"name": "amlr-serve", "version": __version__, "extensions": extensions})


async def live(_: Request) -> Response:
    """Always true where it can be answered at all."""
    return JSONResponse({"live": True})


async def ready(request: Request) -> Response:
    """True once loaded, checked, warmed up and measured; false while failing or stopping."""
    service = service_of(request)
    value = {"ready": service.ready, "state": str(service.state)}
    return JSONResponse(value, 200 if service.ready else 503)


async def model(request: Request) -> Response:
    """`text` and, where there are pictures, `image`; `result` holds JSON."""
    service = _model(request)
    # The hash of the bundle in service: deployments change it under traffic.
    bundle = getattr(service.engine, "bundle", None)
    provenance = {} if bundle is None else {"manifest_sha256": str(bundle.manifest_sha256)}
    values = {
        "name": service.model_name,
        "versions": [_VERSION],
        "platform": "amlr",
        "inputs": [
            {"name": "text", "datatype": "BYTES", "shape": [-1]},
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [{"name": "result", "datatype": "BYTES", "shape": [-1]}],
        "parameters": provenance,
    }
    return JSONResponse(values)


async def model_ready(request: Request) -> Response:
    """As the server's readiness: there is one model."""
    _model(request)
    return await ready(request)


async def infer(request: Request) -> Response:
    """One result a post, as JSON text. Binary tensor data is understood both ways."""
    service = _model(request)
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


def _model(request: Request) -> TaggingService:
    """The service, where the path names its model and perhaps its version."""
    service, named = service_of(request), {**request.query_params, **request.path_params}
    if named["name"] != service.model_name or named.get("version", _VERSION) != _VERSION:
        raise ApiError(404, "model_unknown", f"the only model is '{service.model_name}', version 1")
    return service


def _header_length(request: Request) -> int | None:
    text = request.headers.get(_HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise ApiError(400, "request_invalid", f"{_HEADER_LENGTH} must be a whole number")
    return int(text)


ROUTES = [
    Route("/v2", server, methods=["GET"]),
    Route("/v2/health/live", live, methods=["GET"]),
    Route("/v2/health/ready", ready, methods=["GET"]),
    *(
        Route(f"/v2/models/{{name}}{version}{path}", endpoint, methods=[method])
        for version in ("", "/versions/{version}")
        for path, endpoint, method in (
            ("", model, "GET"),
            ("/ready", model_ready, "GET"),
            ("/infer", infer, "POST"),
        )
    ),
]
