"""The interface's description is a file: it says what the routes and the checks of bodies do."""

import json
from typing import Any

import pytest
from pydantic import BaseModel
from starlette.routing import Route

from amlr.serving.app import create_app
from amlr.serving.page import STATIC
from amlr.serving.parsing import DeadlineBody, PostBody, PostsBody
from fake_engine import FakeEngine

DOCUMENT = json.loads((STATIC / "openapi.json").read_text())
SCHEMAS = DOCUMENT["components"]["schemas"]


def test_every_operation_has_a_route_and_every_route_is_described() -> None:
    routes = create_app(FakeEngine()).routes
    served = {
        (method.lower(), route.path)
        for route in routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    described = {(method, path) for path, ops in DOCUMENT["paths"].items() for method in ops}
    # Pages, this document, and the same operations under a version.
    left = {path for _, path in served - described if "/versions/" not in path}
    assert described <= served
    assert left == {"/", "/docs", "/static/{name}", "/openapi.json"}


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        inner = [references(item) for item in value.values()]
        return set().union(*inner, [value["$ref"]] if "$ref" in value else [])
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_every_reference_is_there_and_every_part_is_referred_to() -> None:
    parts = {
        f"#/components/{kind}/{name}"
        for kind, named in DOCUMENT["components"].items()
        for name in named
    }
    assert references(DOCUMENT) == parts


def plain(schema: Any, is_properties: bool = False) -> Any:
    """A schema without its texts and defaults."""
    if isinstance(schema, dict):
        texts = () if is_properties else ("title", "description", "default")
        return {
            name: plain(value, name == "properties")
            for name, value in schema.items()
            if name not in texts
        }
    return [plain(value) for value in schema] if isinstance(schema, list) else schema


@pytest.mark.parametrize(
    ("name", "models"),
    [
        ("PostBody", (PostBody,)),
        ("SinglePostBody", (PostBody, DeadlineBody)),
        ("PostsBody", (PostsBody,)),
    ],
)
def test_bodies_are_described_as_they_are_checked(
    name: str, models: tuple[type[BaseModel], ...]
) -> None:
    schemas = [plain(model.model_json_schema()) for model in models]
    checked = {**schemas[0], "properties": {}}
    for schema in schemas:
        checked["properties"] |= schema["properties"]
    described = plain(SCHEMAS[name])
    if name == "PostsBody":  # unchecked at first: each post has its own error
        assert described["properties"]["posts"].pop("items")
        assert checked["properties"]["posts"].pop("items") == {}
    assert described == checked
