"""The page of benchmarks, its plots and the README's figures say what the result files say."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.headlines import in_readme, page
from benchmarks.plots import FOLDER, SOURCES, mark_of

ROOT = Path(__file__).parent.parent


def test_page_is_generated_from_the_results() -> None:
    written = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    assert written == page(), "run: python -m benchmarks.headlines"


def test_figures_of_the_readme_are_generated_from_the_results() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert readme == in_readme(readme), "run: python -m benchmarks.headlines"


@pytest.mark.parametrize("name", SOURCES)
def test_plots_are_of_these_results(name: str) -> None:
    assert mark_of(name) in (FOLDER / f"{name}.svg").read_text("utf-8"), "run: python -m benchmarks.plots"
