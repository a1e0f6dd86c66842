"""Every route: where it is served, and what goes in and out. The router and the OpenAPI document are made of this."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST

from frontend.binary_body import MEDIA_TYPES
from frontend.dialect import Dialect
from frontend.embedding_schemas import (
    EmbedAllBody,
    EmbeddingsAnswer,
    EmbeddingsBody,
    EncodeAnswer,
    EncodeBody,
    JinaAnswer,
    NextPlaidAnswer,
    PoolingAnswer,
    PoolingBody,
    RerankWithEncodingBody,
    Rows,
)
from frontend.openapi import Operation
from frontend.routes import documentation, embeddings, status
from frontend.routes.mixedbread import reranking
from frontend.routes.next_plaid import rerank_with_encoding
from frontend.routes.nim import ranking
from frontend.routes.rerank import rerank
from frontend.routes.score import score
from frontend.routes.tokenize import (
    DetokenizeAnswer,
    DetokenizeBody,
    TeiToken,
    TokenizeAnswer,
    TokenizeBody,
    detokenize,
    tokenize,
)
from frontend.schemas import (
    InfinityAnswer,
    MixedbreadAnswer,
    NimAnswer,
    RankingBody,
    RerankAnswer,
    RerankBody,
    RerankingBody,
    ScoreAnswer,
    ScoreBody,
    TeiRank,
)
from frontend.status_schemas import (
    InfinityModelList,
    ModelList,
    NimHealth,
    ServerLoad,
    TeiInfo,
    Version,
)

_TENSORS = tuple(sorted(MEDIA_TYPES))
_RERANK_EXAMPLE = {"query": "how many hearts does an octopus have", "documents": ["Three.", "Paris is in France."]}

OPERATIONS = (
    Operation(
        ("/rerank", "/v1/rerank"),
        rerank,
        "Rerank documents",
        "POST",
        body=RerankBody,
        body_media=_TENSORS,
        answers=(RerankAnswer, list[TeiRank], NextPlaidAnswer, InfinityAnswer),
        dialects=(Dialect.VLLM, Dialect.TEI, Dialect.NEXT_PLAID),
        example={**_RERANK_EXAMPLE, "top_n": 1},
    ),
    Operation(
        ("/v2/rerank",),
        rerank,
        "Rerank documents (Cohere v2)",
        "POST",
        body=RerankBody,
        body_media=_TENSORS,
        answers=(RerankAnswer,),
        dialects=(Dialect.COHERE,),
        example={**_RERANK_EXAMPLE, "return_documents": True},
    ),
    Operation(
        ("/score", "/v1/score"),
        score,
        "Score pairs",
        "POST",
        body=ScoreBody,
        body_media=_TENSORS,
        answers=(ScoreAnswer,),
        example={"text_1": "how many hearts", "text_2": ["Three.", "Paris is in France."]},
    ),
    Operation(
        ("/v1/ranking", "/ranking"),
        ranking,
        "Rerank passages (NVIDIA NIM)",
        "POST",
        body=RankingBody,
        answers=(NimAnswer,),
        example={"query": {"text": "how many hearts"}, "passages": [{"text": "Three."}, {"text": "Paris."}]},
    ),
    Operation(
        ("/v1/reranking",),
        reranking,
        "Rerank documents (mixedbread)",
        "POST",
        body=RerankingBody,
        answers=(MixedbreadAnswer,),
        example={"query": "how many hearts", "input": ["Three.", "Paris."], "top_k": 1, "return_input": True},
    ),
    Operation(
        ("/rerank_with_encoding",),
        rerank_with_encoding,
        "Rerank texts (next-plaid)",
        "POST",
        body=RerankWithEncodingBody,
        answers=(NextPlaidAnswer,),
        dialects=(Dialect.NEXT_PLAID,),
        example=_RERANK_EXAMPLE,
    ),
    Operation(
        ("/pooling",),
        embeddings.pooling,
        "Token embeddings (vLLM)",
        "POST",
        body=PoolingBody,
        answers=(PoolingAnswer,),
        answer_media=("application/octet-stream",),
        example={"input": ["Three."], "encoding_format": "base64", "embed_dtype": "float16"},
    ),
    Operation(
        ("/v1/embeddings",),
        embeddings.embeddings,
        "Token embeddings (vLLM, PyLate, Jina)",
        "POST",
        body=EmbeddingsBody,
        answers=(EmbeddingsAnswer, JinaAnswer),
        dialects=(Dialect.VLLM, Dialect.JINA),
        example={"input": ["how many hearts"], "is_query": True},
    ),
    Operation(
        ("/v1/multi-vector",),
        embeddings.multi_vector,
        "Token embeddings (Jina)",
        "POST",
        body=EmbeddingsBody,
        answers=(JinaAnswer,),
        dialects=(Dialect.JINA,),
        example={"input": ["Three."], "input_type": "document", "embedding_type": "base64"},
    ),
    Operation(
        ("/embed_all",),
        embeddings.embed_all,
        "Token embeddings (TEI)",
        "POST",
        body=EmbedAllBody,
        answers=(list[Rows],),
        dialects=(Dialect.TEI,),
        example={"inputs": ["Three."]},
    ),
    Operation(
        ("/encode",),
        embeddings.encode,
        "Token embeddings (next-plaid)",
        "POST",
        body=EncodeBody,
        answers=(EncodeAnswer,),
        dialects=(Dialect.NEXT_PLAID,),
        example={"texts": ["how many hearts"], "input_type": "query"},
    ),
    Operation(
        ("/tokenize",),
        tokenize,
        "Token ids of texts",
        "POST",
        body=TokenizeBody,
        answers=(TokenizeAnswer, list[list[TeiToken]]),
        dialects=(Dialect.VLLM, Dialect.TEI),
        example={"prompt": "how many hearts", "return_token_strs": True},
    ),
    Operation(
        ("/detokenize",),
        detokenize,
        "The text of token ids",
        "POST",
        body=DetokenizeBody,
        answers=(DetokenizeAnswer,),
        example={"tokens": [1, 2]},
    ),
    Operation(("/v1/models",), status.models, "Models (vLLM, OpenAI)", answers=(ModelList,)),
    Operation(("/models",), status.infinity_models, "Models (Infinity)", answers=(InfinityModelList,)),
    Operation(("/info",), status.tei_info, "The server (TEI)", answers=(TeiInfo,)),
    Operation(("/version",), status.version, "Version", answers=(Version,)),
    Operation(("/load",), status.load, "Requests in flight (vLLM)", answers=(ServerLoad,)),
    Operation(
        ("/metrics", "/v1/metrics"), status.metrics, "Metrics", answer_media=(CONTENT_TYPE_LATEST.partition(";")[0],)
    ),
    Operation(("/health", "/ping"), status.health, "Whether requests can be answered", is_probe=True),
    Operation(("/live",), status.live, "Whether this process answers", is_probe=True),
    Operation(("/ready",), status.ready, "Whether to send requests here", is_probe=True),
    Operation(("/v1/health/live",), status.nim_live, "As /live (NIM)", answers=(NimHealth,), is_probe=True),
    Operation(("/v1/health/ready",), status.nim_ready, "As /ready (NIM)", answers=(NimHealth,), is_probe=True),
    Operation(("/openapi.json",), documentation.openapi, "OpenAPI 3.1", answer_media=("application/json",)),
    Operation(("/docs",), documentation.docs, "This page", answer_media=("text/html",)),
)
