"""Linear layers in either layout are the product they say, for any number of rows."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch.nn import functional

from engine.linear import Linear, multiply

IN, OUT = 48, 80


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("num_rows", [1, 2, 31, 257, 1025])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_linear_is_the_product(
    num_rows: int, has_bias: bool, activation: Literal["none", "gelu"], dtype: torch.dtype, tolerance: float
) -> None:
    rows, weight, bias = random(num_rows, IN).to(dtype), random(OUT, IN).to(dtype) / IN**0.5, random(OUT).to(dtype)
    layer = Linear(weight, bias if has_bias else None, activation)
    expected = functional.linear(rows.double(), weight.double(), bias.double() if has_bias else None)
    if activation == "gelu":
        expected = functional.gelu(expected)
    result = layer(rows)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("num_queries", [1, 5, 32, 300])
@pytest.mark.parametrize("dim", [16, 96, 384])
def test_multiply_is_the_product_and_a_row_does_not_depend_on_how_many_there_are(num_queries: int, dim: int) -> None:
    rows, query = random(256, dim), random(num_queries, dim)
    whole = multiply(rows, query)
    torch.testing.assert_close(whole, rows @ query.T, atol=1e-4, rtol=1e-5)
    for num_rows in (16, 48, 112):
        assert torch.equal(multiply(rows[:num_rows], query), whole[:num_rows])
