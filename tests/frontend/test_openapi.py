"""The OpenAPI document: every route is in it, its examples are answered as it says, and /docs shows all of it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from frontend.app import ROUTES
from frontend.auth import PUBLIC_PATHS, digest_of
from frontend.openapi import Operation
from frontend.operations import OPERATIONS
from tests.frontend.surface import Surface

ROOT = Path(__file__).parents[2]


def document_of(surface: Surface) -> dict[str, Any]:
    answer = surface.request("GET", "/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    document: dict[str, Any] = answer.json()
    return document


def test_every_route_is_in_the_document_and_the_reverse() -> None:
    served = {(route.path, method) for route in ROUTES for method in (route.methods or set()) - {"HEAD"}}
    paths = document_of(Surface())["paths"]
    assert {(path, method.upper()) for path, methods in paths.items() for method in methods} == served


def test_every_path_is_in_the_page_for_users_and_the_reverse() -> None:
    table = (ROOT / "docs" / "http.md").read_text("utf-8").partition("## Inputs")[0]
    named = {
        (method, path)
        for line in re.findall(r"^\| (`(?:GET|POST) .*?) \|", table, re.MULTILINE)
        for method in [line[1:].partition(" ")[0]]
        for path in re.findall(r"(/[\w./-]+)`", line)
    }
    assert named == {(operation.method, path) for operation in OPERATIONS for path in operation.paths}


def test_every_reference_leads_somewhere() -> None:
    document = document_of(Surface())
    named = {reference.rpartition("/")[2] for reference in references(document)}
    assert named == set(document["components"]["schemas"])


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [found for each in value.values() for found in references(each)]
    return [found for each in value for found in references(each)] if isinstance(value, list) else []


@pytest.mark.parametrize(
    ("operation", "path"), [pytest.param(each, path, id=path) for each in OPERATIONS for path in each.paths]
)
def test_each_example_is_answered_as_the_document_says(operation: Operation, path: str) -> None:
    surface = Surface()
    document = document_of(surface)
    answer = surface.request(operation.method, path, json=operation.example)
    assert answer.status_code == 200, answer.text
    content = document["paths"][path][operation.method.lower()]["responses"]["200"].get("content")
    if content is None:
        assert answer.content == b""
        return
    media = answer.headers["content-type"].partition(";")[0]
    schema = content[media].get("schema", {})
    if media == "application/json":
        validate(document, schema, answer.json())


def validate(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    jsonschema_rs.validate({**schema, "components": document["components"]}, value)


@pytest.mark.parametrize("path", [path for each in OPERATIONS if each.body is not None for path in each.paths])
def test_each_wrong_body_is_answered_as_the_document_says(path: str) -> None:
    surface = Surface()
    document = document_of(surface)
    answer = surface.post(path, {})
    assert answer.status_code == 400, answer.text
    response = document["paths"][path]["post"]["responses"]["400"]
    validate(document, response["content"]["application/json"]["schema"], answer.json())


def test_the_document_says_where_a_key_is_needed() -> None:
    surface = Surface(api_key_digests=(digest_of("key"),))
    for path in ("/openapi.json", "/docs"):
        assert surface.request("GET", path).status_code == 401
    document = surface.request("GET", "/openapi.json", headers={"authorization": "Bearer key"}).json()
    open_to_all = {
        path for path, methods in document["paths"].items() for each in methods.values() if "security" not in each
    }
    assert open_to_all == PUBLIC_PATHS
    assert not any(
        "security" in each for methods in document_of(Surface())["paths"].values() for each in methods.values()
    )


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            assert name not in ("src", "onclick")
            if name == "id":
                self.ids.add(value or "")
            if name == "href":
                self.links.add(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_every_route_type_and_example_and_loads_nothing() -> None:
    surface = Surface()
    answer = surface.request("GET", "/docs")
    assert answer.headers["content-type"].startswith("text/html")
    page = Page(answer.text)
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert all(link.removeprefix("#") in page.ids for link in page.links)
    document = document_of(surface)
    assert set(document["components"]["schemas"]) <= page.ids
    for operation in OPERATIONS:
        assert all(f"{operation.method} {path}" in page.text for path in operation.paths)
        if operation.example is not None:
            assert f"-d '{json.dumps(operation.example)}'" in page.text
