"""How a ranking task is cut into `Score` messages. Scores are independent per pair, so the cut is not visible.

R1  A part has at most `max_job_rows` rows, each text in whole grains of the store, `part_pairs` pairs, and what is
    supplied with it at most PART_BYTES of embeddings, or PART_IDS token ids, of PART_TEXTS documents to encode. Pairs
    that would be two parts at most are one: what each message costs beside its pairs is then had once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from frontend.encoding import PART_TEXTS
from frontend.ranking import TextInput
from frontend.task_texts import TaskTexts
from frontend.turns import in_turns
from ipc.messages import Limits

PART_BYTES = 4 * 2**20  # of encoded embeddings in one Score: a second or so of a CPU engine's work
PART_IDS = 16_384  # token ids in one Score, for a worker that encodes: on CUDA, what it encodes at once by default
VALUE_PART_BYTES = 16 * 2**20  # of a client's own embeddings in one Score
UNCUT = 2  # times `part_pairs`
FEW_TEXTS = 4  # that are supplied before they are missed


@dataclass(slots=True)
class Part:
    """Some of a task's pairs, and the texts that are supplied with them."""

    pairs: Sequence[int]  # positions in the task's pairs
    supply: set[int] = field(default_factory=set)  # texts: queries first, then documents
    deaths: int = 0  # of workers in which it was running; see ipc.running


async def split(texts: TaskTexts, pairs: Sequence[int], supply: set[int], limits: Limits) -> list[Part]:
    """Parts within R1.

    Pairs that need a document supplied and pairs that do not go apart, so that a large part of names stays one small
    message.

    Args:
        pairs: positions in the task's pairs.
        supply: the texts that are to be supplied.
    """
    is_light = len(supply) <= FEW_TEXTS and all(
        text < texts.num_queries and text not in texts.by_value for text in supply
    )
    step = limits.part_pairs if len(pairs) > UNCUT * limits.part_pairs else len(pairs)
    most = min(len(texts), step + texts.num_queries)  # texts in a part
    if is_light and most * _whole_grains(texts.longest, limits.row_grain) <= limits.max_job_rows:
        # what is asked for again and again costs nothing for each document here
        return [Part(pairs[start : start + step], supply) for start in range(0, len(pairs), step)]
    named = [p for p in pairs if texts.pair(p)[1] not in supply] if supply else pairs
    carried = [p for p in pairs if texts.pair(p)[1] in supply] if supply else []
    return [*await _cut(texts, named, step, supply, limits), *await _cut(texts, carried, step, supply, limits)]


async def _cut(texts: TaskTexts, pairs: Sequence[int], most: int, supply: set[int], limits: Limits) -> list[Part]:
    """
    Args:
        most: pairs of a part.
    """
    parts: list[Part] = []
    current: list[int] = []
    seen: set[int] = set()
    rows = size = 0
    grain = limits.row_grain
    async for some in in_turns(pairs, of=len(texts)):
        for position in some:
            both = texts.pair(position)
            new = [text for text in both if text not in seen]
            new_rows = sum([_whole_grains(texts.max_rows(text), grain) for text in new])
            new_size = sum([_share(texts, text) for text in new if text in supply]) if supply else 0
            is_large = rows + new_rows > limits.max_job_rows or size + new_size > PART_BYTES
            if current and (is_large or len(current) == most):
                parts.append(Part(current, seen & supply))
                current, seen, rows, size = [], set(), 0, 0
                new_rows = sum([_whole_grains(texts.max_rows(text), grain) for text in both])
                new_size = sum([_share(texts, text) for text in both if text in supply])
            current.append(position)
            seen.update(both)
            rows += new_rows
            size += new_size
    if current:
        parts.append(Part(current, seen & supply))
    return parts


def _share(texts: TaskTexts, text: int) -> int:
    """The bytes of a supplied text, such that PART_BYTES fill a part, whatever it is filled with."""
    if not isinstance(texts.inputs[text], TextInput):
        return texts.num_bytes(text) * PART_BYTES // VALUE_PART_BYTES
    size = texts.max_rows(text) * PART_BYTES // PART_IDS if texts.sends_ids else texts.num_bytes(text)
    return size if text < texts.num_queries else max(size, PART_BYTES // PART_TEXTS)


def _whole_grains(rows: int, grain: int) -> int:
    """The room of a text of so many rows: the store gives it in whole grains, and at least one."""
    return max(grain, -(-rows // grain) * grain)
