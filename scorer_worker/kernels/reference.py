"""MaxSim, slow and obviously right: the ground truth of every other kernel."""

from __future__ import annotations

import torch


class Reference:
    """One pair at a time, fp32.

    Args:
        arena: [arena_rows, dim] float32 or float16, where the documents lie. Documents start at a multiple of 16 rows;
            the rows after one, up to the next multiple of 16, repeat one of its own (`Arena.write`).
    """

    def __init__(self, arena: torch.Tensor) -> None:
        self._arena = arena

    def __call__(
        self,
        q: torch.Tensor,
        cu_seqlens_q: list[int],
        d_start: list[int],
        d_rows: list[int],
        cu_pairs: list[int],
    ) -> torch.Tensor:
        """MaxSim scores of packed queries against documents that lie anywhere in the arena.

            score[j] = sum over s of  max over t of  <q[s], d[t]>     s: rows of pair j's query, t: rows of document j

        Args:
            q: [total_q_rows, dim], the arena's dtype and device.
            cu_seqlens_q: [num_queries + 1], first 0, last total_q_rows.
            d_start, d_rows: [num_pairs], first row and number of rows of each pair's document.
            cu_pairs: [num_queries + 1], first 0, last num_pairs: pairs cu_pairs[i] to cu_pairs[i + 1] are query i's.

        Returns:
            [num_pairs] float32. A document without rows, or a query without rows, scores 0. The score of a pair is
            bitwise the same whatever else is in the call (promise P4).

        Source: Khattab & Zaharia 2020 (ColBERT), the MaxSim operator.
        """
        scores = torch.zeros(len(d_start))
        for query in range(len(cu_pairs) - 1):
            query_rows = q[cu_seqlens_q[query] : cu_seqlens_q[query + 1]].float()  # [Lq, dim]
            for j in range(cu_pairs[query], cu_pairs[query + 1]):
                document_rows = self._arena[d_start[j] : d_start[j] + d_rows[j]].float()  # [Ld, dim]
                if len(query_rows) and len(document_rows):
                    similarity = query_rows @ document_rows.T  # [Lq, Ld]
                    scores[j] = similarity.max(dim=1).values.sum()
        return scores
