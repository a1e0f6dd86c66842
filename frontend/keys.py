"""The 16-byte name of a text's embeddings: everything that decides them, and nothing else.

BLAKE2b-128, keyed with the secret of this launch, over length-prefixed (model fingerprint, role, effective token limit,
whether the text may be cut, salt, text). The salt keeps what one API key or `cache_salt` has stored from being found by
another, also by its timing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from frontend.errors import invalid
from ipc.messages import KEY_BYTES, ModelSpec, Role


def key_maker(
    secret: bytes, fingerprint: bytes, role: Role, limit: int, truncation: bool, salt: bytes
) -> Callable[[bytes], bytes]:
    """A function from a text's bytes to its key. The common part is hashed once; 900 bytes cost about 1.2 us."""
    common = hashlib.blake2b(digest_size=KEY_BYTES, key=secret)
    rule = b"cut" if truncation else b"whole"  # a text that must not be cut is never answered from one that was
    for part in (fingerprint, role.encode(), str(limit).encode(), rule, salt):
        common.update(len(part).to_bytes(8, "little") + part)

    def make(data: bytes) -> bytes:
        digest = common.copy()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
        return digest.digest()

    return make


def effective_limit(spec: ModelSpec, role: Role, wanted: int | None, special_tokens: int, field: str) -> int:
    """The tokens that a text of this role is cut to.

    Args:
        wanted: the request's own limit, which can only lower the model's; None: none. With fixed query expansion it has
            no effect, with `min` it is raised to the expansion length, as in the reference.
        special_tokens: special tokens and markers, which count.

    Raises:
        RequestFailed: the limit leaves no room for a text.
    """
    text = spec.query if role == "query" else spec.document
    if wanted is None or text.expansion == "fixed":
        return text.max_length
    if text.expansion == "min":
        wanted = max(wanted, text.expansion_length)
    if wanted <= special_tokens:
        raise invalid(f"{field}: {wanted}, at least {special_tokens + 1}: special tokens count", field)
    return min(wanted, text.max_length)


def bytes_of(text: str) -> bytes:
    """UTF-8, also of lone surrogates, which JSON can hold."""
    return text.encode("utf-8", "surrogatepass")
