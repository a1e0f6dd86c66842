"""A job's entries and pairs: which entry each of its keys has, and which are scored against each other."""

from __future__ import annotations

from array import array
from itertools import groupby
from operator import itemgetter

from scorer_worker.jobs import Job
from scorer_worker.pairs import PLACE_BYTES, PairGroup
from scorer_worker.store import StoreDirectory, slots_of


def note_texts(job: Job, directory: StoreDirectory) -> None:
    """The entry of each key, of those the job has pinned, and their numbers."""
    slots = job.slots
    if job.is_unique:
        job.texts = job.pinned
    else:
        entries = {entry.key: entry for entry in job.pinned}
        job.texts = [entries[key] for key in job.keys]
        slots = slots_of(job.texts)
    job.text_places = directory.places(slots)
    job.rows = array("i", job.text_places)[1::2]
    job.prompt_tokens = directory.prompt_tokens(slots)


def num_aligned_rows(job: Job) -> int:
    """Query rows over all pairs."""
    message = job.message
    if message.pairs is None:
        return sum(job.rows[: message.num_queries]) * message.num_documents
    return sum([job.rows[query] for query in job.request.frames[message.pairs.frame - 1].cast("i")[0::2]])


def groups_of(job: Job, start: int, stop: int) -> list[PairGroup]:
    """The pairs `start` to `stop` of a job, grouped by runs of the same query."""
    message = job.message
    texts, first = job.texts, message.num_queries
    if message.pairs is None and first == 1:
        places = job.text_places[PLACE_BYTES * (1 + start) : PLACE_BYTES * (1 + stop)]
        return [PairGroup(texts[0], texts[1 + start : 1 + stop], places)]
    if message.pairs is None:
        pairs = [divmod(position, message.num_documents) for position in range(start, stop)]
    else:
        flat = job.request.frames[message.pairs.frame - 1].cast("i")
        pairs = list(zip(flat[2 * start : 2 * stop : 2], flat[2 * start + 1 : 2 * stop : 2], strict=True))
    return [
        PairGroup(texts[query], [texts[first + document] for _, document in run])
        for query, run in groupby(pairs, key=itemgetter(0))
    ]
