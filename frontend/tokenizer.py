"""From texts to token ids, exactly as the reference does it, without any state in the tokenizer.

Truncation and padding are state inside a `Tokenizer`: two threads that set them on one object got wrong lengths in 3001 of 6000
encodings. So texts are encoded without special tokens, cut with `Encoding.truncate`, and completed with `post_process`; markers and
expansion rows are added as ids. Per-request limits are then safe from any thread.

User text that contains a special token's spelling ("[SEP]") is parsed as that token, as by the reference.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Encoding, Tokenizer

from frontend.errors import invalid
from ipc.messages import ModelSpec, Role, TextSpec


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """Token ids of some texts, one after the other."""

    lengths: array[int]  # [n], expansion rows included
    expansion: array[int]  # [n]: how many of the last ids are expansion rows
    token_ids: array[int]  # [sum(lengths)]


class StatelessTokenizer:
    """One model's tokenizer, for any number of threads.

    Args:
        tokenizer_json: tokenizer.json without truncation and padding.
    """

    def __init__(self, spec: ModelSpec, tokenizer_json: bytes) -> None:
        self._tokenizer = Tokenizer.from_buffer(tokenizer_json)
        assert self._tokenizer.truncation is None and self._tokenizer.padding is None
        self._specs: dict[Role, TextSpec] = {"query": spec.query, "document": spec.document}
        self._num_specials = self._tokenizer.num_special_tokens_to_add(False)

    def special_tokens(self, role: Role) -> int:
        """Special tokens and markers of a text: what its limit loses to them."""
        return self._num_specials + len(self._specs[role].marker_ids)

    def encode(
        self, role: Role, texts: Sequence[str], limit: int, truncation: bool, names: Sequence[str]
    ) -> TokenizedTexts:
        """The ids of texts of one role.

        Args:
            limit: tokens of a text, special tokens and markers included, expansion not.
            truncation: False: a text that is longer raises.
            names: what a user calls each text.

        Raises:
            RequestFailed: a text is too long and must not be cut.
        """
        spec = self._specs[role]
        room = limit - self.special_tokens(role)
        lengths, expansion, token_ids = array("i"), array("i"), array("i")
        for name, encoding in zip(names, self._tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True):
            if len(encoding.ids) > room:
                if not truncation:
                    length = len(encoding.ids) + self.special_tokens(role)
                    raise invalid(f"{name}: {length} tokens, at most {limit} with truncation false", name)
                encoding.truncate(room)
            ids = self._complete(encoding, spec)
            extra = max(0, spec.expansion_length - len(ids)) if spec.expansion != "none" else 0
            token_ids.extend(ids)
            token_ids.extend([spec.expansion_token_id] * extra)
            lengths.append(len(ids) + extra)
            expansion.append(extra)
        return TokenizedTexts(lengths, expansion, token_ids)

    def _complete(self, encoding: Encoding, spec: TextSpec) -> list[int]:
        """Special tokens around the text, and the marker after the first of them."""
        ids: list[int] = self._tokenizer.post_process(encoding).ids
        if not spec.marker_ids:
            return ids
        return [*ids[:1], *spec.marker_ids, *ids[1:]] if self._num_specials else [*spec.marker_ids, *ids]
