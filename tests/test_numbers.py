"""The page of numbers says what the result files say."""

from __future__ import annotations

from pathlib import Path

from benchmarks.tables import page

ROOT = Path(__file__).parent.parent


def test_numbers_page_is_generated_from_the_results() -> None:
    written = (ROOT / "docs" / "numbers.md").read_text("utf-8")
    assert written == page(), "run: python -m benchmarks.tables > docs/numbers.md"
