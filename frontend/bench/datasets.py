"""What the load generator asks: one query and its documents per request, made up or read from a file.

`random-rerank` is that of `vllm bench serve`: the same seed and options give the same texts with as many tokens.
`synthetic` asks for documents out of a pool, so that a share of them has been seen before. `jsonl` reads a file.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from frontend.bench.numpy_random import IntegerGenerator

MAX_RETRIES = 10  # to make a text of so many tokens exactly


class DatasetError(ValueError):
    """What to ask is not usable. The text names the option or the line, and the rule."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    query: str
    documents: Sequence[str]


# --- vLLM's random-rerank ---------------------------------------------------------------------------------------------


def random_rerank(
    tokenizer: Tokenizer, num_prompts: int, input_length: int, range_ratio: float, batch_size: int, seed: int
) -> list[Asked]:
    """One query for all requests and documents of their own, as vLLM's RandomDatasetForReranking samples them.

    Args:
        input_length: tokens of a pair on average: half for the query, what is left for the document.
        range_ratio: lengths vary by this share, below 1.
        batch_size: documents per request.

    Raises:
        DatasetError: an option is out of its range.
    """
    if not 0 <= range_ratio < 1:
        raise DatasetError(f"--random-range-ratio: must be at least 0 and below 1, got {range_ratio:g}")
    sampler = _VllmSampler(tokenizer, seed)
    (query_length,), (query_offset,) = sampler.lengths(1, range_ratio, input_length // 2 - 1)
    lengths, offsets = sampler.lengths(num_prompts, range_ratio, input_length - query_length - 1)
    if query_length < 1 or min(lengths) < 1:
        raise DatasetError(f"--random-input-len: {input_length} is too short for a query and a document of 1 token")
    query = sampler.text(query_length, query_offset, 0)
    documents = [
        sampler.text(length, offset, number + 1)
        for number, (length, offset) in enumerate(zip(lengths, offsets, strict=True))
    ]
    return [Asked(query, documents[start : start + batch_size]) for start in range(0, num_prompts, batch_size)]


class _VllmSampler:
    """RandomDataset's way to lengths, offsets and texts, with its random numbers in its order."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer = plain_copy(tokenizer)
        self._numbers = IntegerGenerator(seed)
        self._vocab_size = tokenizer.get_vocab_size(with_added_tokens=False)
        special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._allowed = [number for number in range(self._vocab_size) if number not in special]

    def lengths(self, count: int, ratio: float, length: int) -> tuple[list[int], list[int]]:
        """(lengths, offsets into the vocabulary), `count` of each."""
        length = max(0, length - self._tokenizer.num_special_tokens_to_add(False))
        low, high = math.floor(length * (1 - ratio)), math.ceil(length * (1 + ratio))
        lengths = self._numbers.integers(low, high + 1, count)
        return lengths, self._numbers.integers(0, self._vocab_size, count)

    def text(self, length: int, offset: int, index: int) -> str:
        """Consecutive pieces of the vocabulary, made to tokenise into `length` again."""
        start = offset + index
        ids = [self._allowed[(start + place) % len(self._allowed)] for place in range(length)]
        for _ in range(MAX_RETRIES + 1):
            text = self._tokenizer.decode(ids, skip_special_tokens=False)
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            if len(ids) == length:
                return text
            if len(ids) < length:
                ids += self._numbers.integers(0, self._vocab_size, length - len(ids))
            ids = ids[:length]
        return text


def plain_copy(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer without its own truncation and padding."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


# --- a pool of documents ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SyntheticShape:
    """Sizes of made-up requests; tokens without special ones."""

    documents: int  # per request
    document_tokens: int
    query_tokens: int
    repeated: float  # the share of documents that come out of the pool
    pool: int  # documents that come again and again
    same_query: bool = False


def synthetic(tokenizer: Tokenizer, num_prompts: int, shape: SyntheticShape, seed: int) -> list[Asked]:
    """Requests whose documents are repeated in part, each query its own unless asked otherwise."""
    choose = random.Random(seed)
    writer = _TextWriter(tokenizer, choose)
    pool = [writer.text(shape.document_tokens) for _ in range(shape.pool)]
    query = writer.text(shape.query_tokens)
    asked = []
    for _ in range(num_prompts):
        repeated = round(shape.documents * shape.repeated)
        is_whole_pool = repeated == len(pool)
        old = list(pool) if is_whole_pool else choose.choices(pool, k=repeated) if repeated else []
        new = [writer.text(shape.document_tokens) for _ in range(shape.documents - repeated)]
        asked.append(Asked(query if shape.same_query else writer.text(shape.query_tokens), [*old, *new]))
    return asked


class _TextWriter:
    """Texts of so many tokens, of whole words of the vocabulary."""

    def __init__(self, tokenizer: Tokenizer, choose: random.Random) -> None:
        self._tokenizer = plain_copy(tokenizer)
        self._choose = choose
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
        stems = {token.lstrip("▁Ġ") for token in vocabulary}
        candidates = sorted(stem for stem in stems if stem.isalpha() and stem.isascii())
        choose.shuffle(candidates)
        words = candidates[:20_000]
        encoded = self._tokenizer.encode_batch_fast([f"{word} {word}" for word in words], add_special_tokens=False)
        self._words = [word for word, ids in zip(words, encoded, strict=True) if len(ids) == 2]
        if not self._words:
            raise DatasetError("--tokenizer: no ASCII word of its vocabulary is one token")

    def text(self, tokens: int) -> str:
        return " ".join(self._choose.choices(self._words, k=tokens))


# --- a file -----------------------------------------------------------------------------------------------------------


def read_jsonl(path: Path, num_prompts: int) -> list[Asked]:
    """One request per line: {"query": "...", "documents": ["...", ...]}; from the start again if there are too few.

    Raises:
        DatasetError: the file cannot be read, or a line is something else.
    """
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"--dataset-path: cannot read {path}: {error}") from None
    if not lines:
        raise DatasetError(f"--dataset-path: {path} holds no request")
    asked = [_read_line(line, f"{path}:{number}") for number, line in enumerate(lines[:num_prompts], 1)]
    return [asked[number % len(asked)] for number in range(num_prompts)]


def _read_line(line: str, place: str) -> Asked:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DatasetError(f"--dataset-path: {place}: not JSON ({error})") from None
    query = value.get("query") if isinstance(value, dict) else None
    documents = value.get("documents") if isinstance(value, dict) else None
    if not isinstance(query, str) or not isinstance(documents, list):
        raise DatasetError(f'--dataset-path: {place}: expected {{"query": text, "documents": [text, ...]}}')
    if not documents or not all(isinstance(document, str) for document in documents):
        raise DatasetError(f"--dataset-path: {place}: documents: expected a list of texts, at least one")
    return Asked(query, documents)
