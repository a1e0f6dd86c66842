"""What is wrong with the texts that a job supplies, beyond what the codec has checked."""

from __future__ import annotations

from engine.text_rules import TextRules
from ipc.messages import SuppliedTokens
from scorer_worker.jobs import Job, SuppliedIds, SuppliedRows

Complaint = tuple[str, int | None]  # in words for the client; the position of the text to blame, if it is one


def complaint_about(job: Job, dim: int, rules: TextRules | None) -> Complaint | None:
    """None: there is none.

    Args:
        dim: the store's.
        rules: of the encoder that the worker hosts; None: it hosts none.
    """
    return _about_ids(job, rules) or _about_embeddings(job, dim)


def _about_embeddings(job: Job, dim: int) -> Complaint | None:
    for text in job.supplied.values():
        if isinstance(text, SuppliedRows) and text.rows and text.embeddings.nbytes % (text.rows * dim) != 0:
            return f"embeddings: not {dim} wide", text.position
    for ref in job.message.supplied:
        embeddings = getattr(ref, "embeddings", None)
        if embeddings is not None and embeddings.shape[1] != dim:
            return f"embeddings: dim {embeddings.shape[1]}, expected {dim}", None
    return None


def _about_ids(job: Job, rules: TextRules | None) -> Complaint | None:
    parts = [part for part in job.message.supplied if isinstance(part, SuppliedTokens)]
    texts = [text for text in job.supplied.values() if isinstance(text, SuppliedIds)] if parts else []
    if not texts:
        return None
    if rules is None:
        return "this worker hosts no encoder: supply embeddings", texts[0].position
    frames = job.request.frames
    if all(
        rules.are_fine(*(frames[ref.frame - 1].cast("i") for ref in (part.token_ids, part.lengths))) for part in parts
    ):
        return None
    for text in texts:
        problem = rules.check(text.token_ids)
        if problem is not None:
            return problem, text.position
    return None
