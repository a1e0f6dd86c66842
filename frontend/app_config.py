"""What an API server's routes must know of the settings.

Travels from the launcher as JSON; API keys only as digests.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from frontend.auth import digest_of
from frontend.config import ServeConfig
from frontend.json_body import ScoreMode


class AppConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the HTTP surface."""

    served_model_names: tuple[str, ...] = ()  # empty: the model's own name
    strict_model_name: bool = False
    api_key_digests: tuple[str, ...] = ()
    score_mode: ScoreMode = "raw"
    dialect: Literal["auto", "infinity"] = "auto"
    max_documents_per_request: int = 4096
    max_body_bytes: int = 64 * 2**20
    request_timeout: float = 30.0
    is_cache_per_key: bool = False
    expose_timings: bool = False
    root_path: str = ""
    cors_allow_origins: tuple[str, ...] = ()  # empty: no other site's pages


def app_config(config: ServeConfig) -> AppConfig:
    """The part of the settings that the routes need."""
    return AppConfig(
        served_model_names=config.served_model_name or ((config.model,) if config.model is not None else ()),
        strict_model_name=config.strict_model_name,
        api_key_digests=tuple(digest_of(key) for key in config.api_key),
        score_mode=config.score_mode,
        dialect=config.dialect,
        max_documents_per_request=config.max_documents_per_request,
        max_body_bytes=config.max_body_bytes,
        request_timeout=config.request_timeout,
        is_cache_per_key=config.is_cache_per_key,
        expose_timings=config.expose_timings,
        root_path=config.root_path,
        cors_allow_origins=config.cors_allow_origin,
    )
