"""From texts to token ids, exactly as the reference does it, without any state in the tokenizer.

Truncation and padding are state inside a `Tokenizer`: two threads that set them on one object got wrong lengths in 3001
of 6000 encodings. So texts are encoded without special tokens, cut with `Encoding.truncate`, and completed with
`post_process`; markers and expansion rows are added as ids. Per-request limits are then safe from any thread.

A text of 10 MB that is cut to 512 tokens took 1 GB and 5.7 s. So of a text that is much longer than its limit only the
beginning is tokenised. Tokens depend on their own word and what stands next to it: the last word of a beginning is not
trusted, all before it is exact. Where that is not enough a longer beginning is taken, up to 262,144 characters (32 for
each token where that is more); what lies behind them is not read. Only a text of words too long to be words, or of
blanks, has fewer tokens than its limit there.

User text that contains a special token's spelling ("[SEP]") is parsed as that token, as by the reference.

What explains a score needs to know where in its text each token stands. That costs half as much again as the ids, so
`locate` does it, for the texts that are explained.
"""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tokenizers import Encoding, Tokenizer

from frontend.errors import invalid
from ipc.messages import ModelSpec, Role, TextSpec

CHARACTERS_PER_TOKEN = 8  # of a first beginning; prose in English has 4 to 5
SHORTEST_BEGINNING = 1024  # characters
GROWTH = 4  # of a beginning that was too short
LONGEST_BEGINNING = 262_144  # characters: one word of that length takes 22 MB
WORD_MARK = "\u2581"  # begins a word in XLM-R's pieces; alone it stands for no letter of it
BATCH_CHARACTERS = 32_768  # tokenised at once: their encodings take 4 MB, 36 where each is a token


T = TypeVar("T")
Span = tuple[int, int]  # code points of a text, [start, end)


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """Token ids of some texts, one after the other."""

    lengths: array[int]  # [n], expansion rows included
    expansion: array[int]  # [n]: how many of the last ids are expansion rows
    token_ids: array[int]  # [sum(lengths)]


@dataclass(frozen=True, slots=True)
class LocatedText:
    """Which token of its text each scored row is."""

    text: str
    tokens: Sequence[str]  # by row; as the vocabulary writes them
    offsets: Sequence[Span | None]  # by row; None: a special token, a marker or expansion
    shift: int  # of the offsets: the length of the prefix

    def span(self, row: int) -> Span | None:
        """Where the row's token stands in the text, without the blanks around it, and with the marks that its last
        letter carries, which a normalizer may have taken off; None: it stands for nothing of the text but blanks."""
        offsets = self.offsets[row]
        if offsets is None or self.tokens[row] == WORD_MARK:
            return None
        text, start, end = self.text, max(0, offsets[0] - self.shift), offsets[1] - self.shift
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        if start >= end:
            return None
        while end < len(text) and unicodedata.combining(text[end]):
            end += 1
        return start, end


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

    @property
    def vocab_size(self) -> int:
        """Ids are below this; added tokens included."""
        return int(self._tokenizer.get_vocab_size())

    def encode_plainly(self, texts: Sequence[str], add_special_tokens: bool) -> list[Encoding]:
        """As the tokenizer alone does it: no marker, expansion or limit."""
        return list(self._tokenizer.encode_batch(list(texts), add_special_tokens=add_special_tokens))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def encode(
        self, role: Role, texts: Sequence[str], limit: int, truncation: bool, names: Sequence[str]
    ) -> TokenizedTexts:
        """The ids of texts of one role.

        Args:
            limit: tokens of a text, special tokens and markers included, expansion not; above `special_tokens`.
            truncation: False: a text that is longer raises.
            names: what a user calls each text.

        Raises:
            RequestFailed: a text is too long and must not be cut.
        """
        spec = self._specs[role]
        room = limit - self.special_tokens(role)
        if spec.prefix:
            texts = [spec.prefix + text for text in texts]
        lengths, expansion, token_ids = array("i"), array("i"), array("i")
        longest = _longest_beginning(room)
        for name, text, encoding in zip(names, texts, self._beginnings(texts, room), strict=True):
            if len(encoding) > room or len(text) > longest:
                if not truncation:
                    raise invalid(f"{name}: more than {limit} tokens, and truncation is false", name)
                encoding.truncate(room)
            ids = self._complete(encoding, spec)
            extra = _num_expansion(spec, len(ids))
            token_ids.extend(ids)
            token_ids.extend([spec.expansion_token_id] * extra)
            lengths.append(len(ids) + extra)
            expansion.append(extra)
        return TokenizedTexts(lengths, expansion, token_ids)

    def locate(self, role: Role, texts: Sequence[str], limit: int) -> Iterator[LocatedText]:
        """For each text the tokens of its scored rows, and where they stand in it.

        Args:
            limit: as for `encode`, which has taken these texts.
        """
        spec = self._specs[role]
        room = limit - self.special_tokens(role)
        prefixed = [spec.prefix + text for text in texts] if spec.prefix else texts
        for text, encoding in zip(texts, self._beginnings(prefixed, room, has_offsets=True), strict=True):
            encoding.truncate(room)
            yield self._locate(text, self._tokenizer.post_process(encoding), spec)

    def _locate(self, text: str, encoding: Encoding, spec: TextSpec) -> LocatedText:
        """
        Args:
            encoding: of the prefix and the text, with its special tokens.
        """
        markers = [str(self._tokenizer.id_to_token(token_id)) for token_id in spec.marker_ids]
        nowhere: list[Span | None] = [None] * len(markers)
        offsets = [
            None if is_special else place
            for is_special, place in zip(encoding.special_tokens_mask, encoding.offsets, strict=True)
        ]
        ids = self._with_markers(encoding.ids, spec.marker_ids)
        tokens = self._with_markers(encoding.tokens, markers)
        offsets = self._with_markers(offsets, nowhere)
        extra = _num_expansion(spec, len(ids))
        ids += [spec.expansion_token_id] * extra
        tokens += [str(self._tokenizer.id_to_token(spec.expansion_token_id))] * extra
        offsets += [None] * extra
        if spec.skip_token_ids:
            skipped = frozenset(spec.skip_token_ids)
            rows = [place for place, token_id in enumerate(ids) if token_id not in skipped]
            tokens, offsets = [tokens[place] for place in rows], [offsets[place] for place in rows]
        return LocatedText(text, tokens, offsets, len(spec.prefix))

    def _beginnings(self, texts: Sequence[str], room: int, has_offsets: bool = False) -> Iterator[Encoding]:
        """For each text an encoding without special tokens: of all of it, or of more than its first `room` tokens."""
        encode_batch = self._tokenizer.encode_batch if has_offsets else self._tokenizer.encode_batch_fast
        enough = first_beginning(room)
        for start, end in _batches(texts, enough):
            batch = texts[start:end]
            encodings = encode_batch([text[:enough] for text in batch], add_special_tokens=False)
            for text, encoding in zip(batch, encodings, strict=True):
                is_enough = len(text) <= enough or _num_exact(encoding) > room
                yield encoding if is_enough else self._longer_beginning(text, room)

    def _longer_beginning(self, text: str, room: int) -> Encoding:
        """The same of one text whose first beginning was not enough."""
        enough, longest = first_beginning(room), _longest_beginning(room)
        while True:
            enough = min(enough * GROWTH, longest)
            encoding: Encoding = self._tokenizer.encode(text[:enough], add_special_tokens=False)
            if enough >= min(len(text), longest) or _num_exact(encoding) > room:
                return encoding

    def _complete(self, encoding: Encoding, spec: TextSpec) -> list[int]:
        """Special tokens around the text, and the marker after the first of them."""
        return self._with_markers(self._tokenizer.post_process(encoding).ids, spec.marker_ids)

    def _with_markers(self, values: list[T], markers: Sequence[T]) -> list[T]:
        """What belongs to each token, with what belongs to the markers where those stand."""
        if not markers:
            return values
        return [*values[:1], *markers, *values[1:]] if self._num_specials else [*markers, *values]


def _num_expansion(spec: TextSpec, length: int) -> int:
    """How many expansion rows follow so many ids."""
    return max(0, spec.expansion_length - length) if spec.expansion != "none" else 0


def first_beginning(room: int) -> int:
    """Characters of a text that are tokenised at first, to find its first `room` tokens."""
    return max(SHORTEST_BEGINNING, CHARACTERS_PER_TOKEN * room)


def _longest_beginning(room: int) -> int:
    return max(LONGEST_BEGINNING, GROWTH * first_beginning(room))


def _batches(texts: Sequence[str], longest: int) -> Iterator[tuple[int, int]]:
    """Ranges of texts that are tokenised together: `longest` characters of each, about BATCH_CHARACTERS of all."""
    start = size = 0
    for index, text in enumerate(texts):
        share = min(len(text), longest)
        if index > start and size + share > BATCH_CHARACTERS:
            yield start, index
            start, size = index, 0
        size += share
    if start < len(texts):
        yield start, len(texts)


def _num_exact(encoding: Encoding) -> int:
    """How many tokens of a text's beginning are also the whole text's: those before its last word."""
    words = encoding.word_ids
    exact = len(words)
    while exact and words[exact - 1] == words[-1]:
        exact -= 1
    return exact
