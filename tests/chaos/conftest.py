"""Servers to be killed, and the reference's scores."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chaos.truth import Truth, compute_truth
from tests.end_to_end.conftest import reference, start  # fixtures

__all__ = ["reference", "start"]


@pytest.fixture(scope="session")
def truth(reference: Any) -> Truth:
    """Computed once, before anything is disturbed."""
    return compute_truth(reference)
