"""From raw MaxSim to the scores that a client asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence

from frontend.errors import invalid
from frontend.json_body import ScoreMode
from frontend.ranking import RankingResult
from ipc.messages import ModelSpec


def convert_scores(
    result: RankingResult, pairs: Sequence[tuple[int, int]] | None, mode: ScoreMode, spec: ModelSpec | None
) -> list[float]:
    """Scores in pair order.

    raw: MaxSim, the sum over query rows (their mean, for models trained with meanmaxsim). mean: the sum divided by the
    number of scored query rows, in [-1, 1] for normalised models. unit: the mean mapped to [0, 1], for clients with
    thresholds.

    Raises:
        RequestFailed: a score is not finite: a client's own embeddings are finite, but too large to add up. JSON has no
            infinity; it would become null.
    """
    if not all(map(math.isfinite, result.scores)):
        raise invalid("embeddings: too large, their products add up to more than a float32 holds", "embeddings")
    is_mean_model = spec is not None and spec.similarity == "meanmaxsim"
    if mode == "raw" and not is_mean_model:
        return result.scores.tolist()
    rows = [max(1, count) for count in result.query_rows]
    queries = [0] * len(result.scores) if pairs is None else [query for query, _ in pairs]
    means = [score / rows[query] for score, query in zip(result.scores, queries, strict=True)]
    return [(mean + 1) / 2 for mean in means] if mode == "unit" else means
