"""GET /openapi.json, /docs: what this server serves, for programs and for people."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from frontend.openapi import Documentation

# The page is one file without scripts; nothing else may be loaded into it.
_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"


async def openapi(request: Request) -> Response:
    """This document, made of the types that requests are decoded with."""
    return Response(_documentation(request).json, 200, media_type="application/json")


async def docs(request: Request) -> Response:
    """This document as a page. It is one file without scripts, and loads nothing: it can be saved and read offline."""
    headers = {"content-security-policy": _PAGE_POLICY}
    return Response(_documentation(request).page, 200, headers, "text/html")


def _documentation(request: Request) -> Documentation:
    documentation = request.app.state.documentation
    assert isinstance(documentation, Documentation)
    return documentation
