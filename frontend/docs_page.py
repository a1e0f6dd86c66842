"""The OpenAPI document as one HTML page: no scripts, nothing is loaded; it can be saved and read offline."""

from __future__ import annotations

import json
from html import escape
from typing import Any

Json = dict[str, Any]

_STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; }
h2 { margin: 2em 0 0; border-top: 1px solid #ccc; padding-top: .5em; }
code, pre { font: 14px/1.4 monospace; background: #f4f4f4; }
pre { padding: .7em; white-space: pre-wrap; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .2em .8em .2em 0; border-bottom: 1px solid #eee; }
"""


def docs_page(document: Json) -> str:
    """The page: routes with an example for curl, then the types that they name."""
    info = document["info"]
    is_keyed = "securitySchemes" in document["components"]
    root = document["servers"][0]["url"] if "servers" in document else ""
    operations = [
        _operation(method, path, operation, is_keyed, root)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    types = [_type(name, schema) for name, schema in document["components"]["schemas"].items()]
    title = f"{escape(info['title'])} {escape(info['version'])}"
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head><body>',
            f"<h1>{title}</h1><p>{escape(info['description'])}</p>",
            *operations,
            "<h1>Types</h1>",
            *types,
            "</body></html>",
        ]
    )


def _operation(method: str, path: str, operation: Json, is_keyed: bool, root: str) -> str:
    lines = [
        f'<h2 id="{operation["operationId"]}"><code>{method.upper()} {escape(path)}</code> '
        f"{escape(operation['summary'])}</h2>",
        f"<p>{escape(operation['description'])}</p>",
    ]
    needs_key = is_keyed and "security" in operation
    content = operation.get("requestBody", {}).get("content", {})
    for media, body in content.items():
        lines.append(f"<p>Body, <code>{escape(media)}</code>: {_shown(body['schema'])}</p>")
    lines += [
        f"<p>Header <code>{escape(each['name'])}</code>: {_shown(each['schema'])}. {escape(each['description'])}</p>"
        for each in operation.get("parameters", [])
    ]
    lines.append(f"<pre>{escape(_curl(method, root + path, content, needs_key))}</pre>")
    lines.append("<table><tr><th>status</th><th>when</th><th>body</th></tr>")
    for status, answer in operation["responses"].items():
        bodies = "; ".join(
            f"<code>{escape(media)}</code> {_shown(body.get('schema', {}))}"
            for media, body in answer.get("content", {}).items()
        )
        lines.append(f"<tr><td>{status}</td><td>{escape(answer['description'])}</td><td>{bodies}</td></tr>")
    return "\n".join([*lines, "</table>"])


def _curl(method: str, path: str, content: Json, needs_key: bool) -> str:
    words = ["curl"]
    if needs_key:
        words.append('-H "Authorization: Bearer $KEY"')
    example = content.get("application/json", {}).get("example")
    if method == "post":
        words.append("-H 'Content-Type: application/json'")
        quoted = json.dumps(example).replace("'", "'\\''")
        words.append(f"-d '{quoted}'")
    return " ".join([*words, f"http://127.0.0.1:8000{path}"])


def _type(name: str, schema: Json) -> str:
    lines = [f'<h2 id="{escape(name)}">{escape(name)}</h2>', f"<p>{escape(schema.get('description', ''))}</p>"]
    required = schema.get("required", [])
    lines.append("<table><tr><th>field</th><th>type</th><th></th></tr>")
    for field, kind in schema.get("properties", {}).items():
        mark = " (required)" if field in required else ""
        lines.append(
            f"<tr><td><code>{escape(field)}</code>{mark}</td><td>{_shown(kind)}</td>"
            f"<td>{escape(kind.get('description', ''))}</td></tr>"
        )
    return "\n".join([*lines, "</table>"])


def _shown(schema: Json) -> str:
    """A type in a few words, with links to those that have a table of their own."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_shown(each) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
    if "prefixItems" in schema:
        return f"list of ({', '.join(_shown(each) for each in schema['prefixItems'])})"
    if schema.get("type") == "array":
        return f"list of ({_shown(schema.get('items', {}))})"
    rules = ("minimum", "exclusiveMinimum", "maximum", "minLength", "maxLength")
    words = [str(schema.get("type", "")), *(f"{rule} {schema[rule]}" for rule in rules if rule in schema)]
    return escape(" ".join(words))
