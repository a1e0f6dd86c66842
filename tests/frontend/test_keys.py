"""The names of embeddings: equal where everything that decides them is equal, else different."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.errors import RequestFailed
from frontend.keys import bytes_of, effective_limit, key_maker
from ipc.messages import KEY_BYTES, ModelSpec, Role, TextSpec

FINE: dict[str, Any] = {
    "secret": b"s" * 32,
    "fingerprint": b"f" * 16,
    "role": "document",
    "limit": 180,
    "truncation": True,
    "salt": b"salt",
}

parts = st.fixed_dictionaries(
    {
        "secret": st.binary(min_size=1, max_size=3),
        "fingerprint": st.binary(max_size=3),
        "role": st.sampled_from(["query", "document"]),
        "limit": st.integers(1, 12),
        "truncation": st.booleans(),
        "salt": st.binary(max_size=3),
    }
)
texts = st.text("ab\0é", max_size=4)


@given(parts, texts, parts, texts)
def test_keys_are_equal_exactly_where_everything_is(
    a: dict[str, Any], text_a: str, b: dict[str, Any], text_b: str
) -> None:
    is_same = (a, text_a) == (b, text_b)
    assert (key_maker(**a)(bytes_of(text_a)) == key_maker(**b)(bytes_of(text_b))) == is_same


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("secret", b"t" * 32),
        ("fingerprint", b"g" * 16),
        ("role", "query"),
        ("limit", 181),
        ("truncation", False),
        ("salt", b"other"),
    ],
)
def test_each_part_changes_the_key(part: str, value: object) -> None:
    assert key_maker(**{**FINE, part: value})(b"text") != key_maker(**FINE)(b"text")


def test_a_part_cannot_lend_its_bytes_to_its_neighbour() -> None:
    assert key_maker(**{**FINE, "salt": b"ab"})(b"c") != key_maker(**{**FINE, "salt": b"a"})(b"bc")


def test_a_key_is_the_keyed_hash_of_length_prefixed_parts() -> None:
    """The definition, hashed in one go: one maker names many texts, and none leaves a trace in the next."""
    make = key_maker(**FINE)
    for text in ("", "text", "é\0" * 5000, "text"):
        fields = (b"f" * 16, b"document", b"180", b"cut", b"salt", text.encode())
        whole = b"".join(len(field).to_bytes(8, "little") + field for field in fields)
        assert make(bytes_of(text)) == hashlib.blake2b(whole, digest_size=KEY_BYTES, key=b"s" * 32).digest()


# --- effective limits ---------------------------------------------------------------------------------------------

SPEC = ModelSpec(
    "m",
    dim=4,
    query=TextSpec(max_length=32, expansion="fixed", expansion_length=32),
    document=TextSpec(max_length=180),
)
SHORT_QUERIES = ModelSpec(
    "m", dim=4, query=TextSpec(max_length=64, expansion="min", expansion_length=32), document=TextSpec(max_length=180)
)


@pytest.mark.parametrize(
    ("spec", "role", "wanted", "limit"),
    [
        pytest.param(SPEC, "document", None, 180, id="the-model's-own"),
        pytest.param(SPEC, "document", 100, 100, id="lowered"),
        pytest.param(SPEC, "document", 4096, 180, id="never-raised"),
        pytest.param(SPEC, "document", 4, 4, id="one-token-of-text"),
        pytest.param(SPEC, "query", 10, 32, id="fixed-expansion-has-its-own"),
        pytest.param(SHORT_QUERIES, "query", 10, 32, id="min-expansion-raises"),
        pytest.param(SHORT_QUERIES, "query", 1, 32, id="min-expansion-raises-what-has-no-room-for-text"),
        pytest.param(SHORT_QUERIES, "query", 40, 40, id="min-expansion-above"),
        pytest.param(SHORT_QUERIES, "query", 100, 64, id="min-expansion-never-above-the-model"),
    ],
)
def test_a_request_lowers_the_limit_as_the_reference_does(
    spec: ModelSpec, role: Role, wanted: int | None, limit: int
) -> None:
    assert effective_limit(spec, role, wanted, special_tokens=3, field="max_tokens_per_doc") == limit


def test_a_limit_without_room_for_text_is_refused() -> None:
    with pytest.raises(RequestFailed, match="max_tokens_per_doc: 3, at least 4") as caught:
        effective_limit(SPEC, "document", 3, special_tokens=3, field="max_tokens_per_doc")
    assert caught.value.param == "max_tokens_per_doc"
