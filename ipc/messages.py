"""Every message between API servers and the services (scorer worker, engine).

Frame 0 of a multipart message is one of these structs in msgpack (array-like, tagged, unknown fields refused). Frames
1..n are raw little-endian buffers that the struct's `ArrayRef`s point to. Nothing here holds a pointer, a path or a
local clock: what is left of a deadline travels as `budget_ms`.

    API server -> worker   Hello  Score   Cancel  Stats
    worker -> API server   Ready  Scores | Missing | Failed   Statistics
    API server -> engine   Hello  Encode  Cancel  Stats
    engine -> API server   Ready  Encoded | Failed            Statistics

A worker that hosts the encoder also takes Encode.

A new field gets a default, so that old and new processes understand each other.
"""

from __future__ import annotations

import enum
from typing import Annotated, Literal

import msgspec

PROTOCOL_VERSION = 1
KEY_BYTES = 16  # BLAKE2b-128 of one text and of everything that decides its embeddings
CLIENT_BYTES = 8  # hash of an API key or peer address: whose turn it is
IDENTITY_BYTES = 16  # random routing id of one process start, never a slot number

MAX_TEXTS = 65_536  # keys in one message
MAX_PAIRS = 1_048_576  # pairs in one message
MAX_ALIGNED_ROWS = 32_768  # query rows, over all pairs of a Score that wants their alignment
MAX_SUPPLIED = 16  # parts of what one Score supplies: each dtype of a client's own, each role
MAX_STRUCT_BYTES = 2**20  # frame 0: what decoding it allocates is a small multiple of it
MAX_MESSAGE_BYTES = 64 * 2**20  # all frames together; senders slice at SLICE_BYTES
SLICE_BYTES = 16 * 2**20  # embeddings in one Score

Role = Literal["query", "document"]
DType = Literal["uint8", "int32", "float16", "bfloat16", "float32"]
FloatDType = Literal["float16", "bfloat16", "float32"]

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Unsigned63 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
ClientTag = Annotated[bytes, msgspec.Meta(min_length=CLIENT_BYTES, max_length=CLIENT_BYTES)]
Fingerprint = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class ErrorCode(enum.StrEnum):
    """Why a request failed. `frontend/errors.py` turns each into an HTTP status."""

    INVALID_REQUEST = "invalid_request"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    STALE_EPOCH = "stale_epoch"  # sent under another start of the service; the client sends again
    WORKER_CRASHED = "worker_crashed"  # this request was running in two services that died
    INTERNAL = "internal"


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A part of a message."""


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag_field="type"):
    """A whole message; the tag is the class name."""


class ArrayRef(Record, frozen=True):
    """Where one array lies in the same multipart message. Holds no bytes itself."""

    dtype: DType
    shape: Annotated[list[Count], msgspec.Meta(min_length=1, max_length=2)]
    frame: Annotated[int, msgspec.Meta(ge=1, le=4096)]  # index of the frame with its bytes


class Credits(Record, frozen=True):
    """How much one client may have outstanding at a service: what it sends beyond waits at the client."""

    bytes: Count
    tokens: Count


class Limits(Record, frozen=True):
    """What a service takes in one message. A client slices what is larger."""

    max_job_rows: Count  # rows of all entries that one Score names (a quarter of the store), each as `row_grain` says
    max_message_bytes: Count
    max_texts: Count
    row_grain: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 1  # an entry takes a multiple of it, and at least one
    part_pairs: Annotated[int, msgspec.Meta(ge=1)] = (
        2048  # in one Score of a task of more than twice as many: somebody else's comes between
    )


class TextSpec(Record, frozen=True):
    """How one role's texts become token ids. Lengths count special tokens and markers.

    Order (docs/models.md): tokenise without special tokens, cut to `max_length` less specials and markers, add
    specials, insert `marker_ids` after the first special token, then append expansion rows.
    """

    max_length: Count
    marker_ids: list[int] = []
    expansion: Literal["none", "fixed", "min"] = "none"
    expansion_length: Count = 0  # total ids with expansion rows
    expansion_token_id: Count = 0
    attend_expansion: bool = False  # False: expansion rows are scored, but nobody attends to them
    skip_token_ids: list[int] = []  # these rows are encoded, but not scored
    prefix: str = ""  # of every text, before it is tokenised: what is left of a prompt after its marker


class ModelSpec(Record, frozen=True):
    """All an API server must know of a model to tokenise for it. The tokenizer's bytes travel beside it."""

    name: str
    dim: Count
    query: TextSpec
    document: TextSpec
    similarity: Literal["maxsim", "meanmaxsim"] = "maxsim"
    format: str = ""  # what it was loaded from, for people: "Stanford ColBERT", "PyLate", ...


class SelfCheck(Record, frozen=True):
    """How far the scores of the encoder that serves lay from those of a plain one, on this machine.

    Not a number is not within any tolerance.
    """

    pairs: Count
    largest_difference: float  # of a MaxSim score: the one that used most of its tolerance
    tolerance: float  # what was allowed there
    dtype: str
    device: str
    checked_at: Count  # seconds since 1970

    @property
    def passes(self) -> bool:
        """Whether this encoder may serve."""
        return self.largest_difference <= self.tolerance


# --- to a service ---------------------------------------------------------------------------------------------


class Hello(Message, frozen=True):
    """I am here; sent every 0.5 s. Answered by Ready, which carries the spec if `fingerprint` is another."""

    protocol: int
    epoch: Unsigned63 = 0  # the last one seen; 0: none yet
    fingerprint: bytes = b""  # of the spec the client holds; empty: none


class SuppliedEmbeddings(Record, frozen=True, tag="embeddings"):
    """Embeddings by value for some of a Score's keys."""

    which: ArrayRef  # int32 [n]: positions in the key frame
    rows: ArrayRef  # int32 [n]
    prompt_tokens: ArrayRef  # int32 [n]
    embeddings: ArrayRef  # a FloatDType, [sum(rows), dim], one text after the other
    keep: bool = True  # False: the entries live for this job only (clients' own embeddings)


class SuppliedTokens(Record, frozen=True, tag="tokens"):
    """Token ids for some of a Score's keys, for a worker that hosts the encoder."""

    role: Role
    which: ArrayRef  # int32 [n]
    lengths: ArrayRef  # int32 [n]: ids of each text, expansion rows included
    expansion: ArrayRef  # int32 [n]: how many of the last ids are expansion rows
    token_ids: ArrayRef  # int32 [sum(lengths)]


Supplied = SuppliedEmbeddings | SuppliedTokens


class Score(Message, frozen=True):
    """Score documents against queries, all named by keys: first the queries', then the documents'."""

    epoch: Unsigned63
    request_id: Unsigned63
    client: ClientTag
    budget_ms: Count  # time left when sent; what is overdue is dropped
    num_queries: Count
    num_documents: Count
    keys: ArrayRef  # uint8 [num_queries + num_documents, 16]
    pairs: ArrayRef | None = None  # int32 [num_pairs, 2] of (query, document); None: every query with every document
    supplied: Annotated[list[Supplied], msgspec.Meta(max_length=MAX_SUPPLIED)] = []
    deaths: Count = 0  # of the Missing that this one answers: a request does not become another by asking again
    want_alignment: bool = False  # of all its pairs: at most MAX_ALIGNED_ROWS query rows over these


class Encode(Message, frozen=True):
    """Encode texts of one role, given as token ids."""

    epoch: Unsigned63
    request_id: Unsigned63
    client: ClientTag
    budget_ms: Count
    role: Role
    keys: ArrayRef  # uint8 [n, 16]: equal keys are encoded once for all who wait
    lengths: ArrayRef  # int32 [n]
    expansion: ArrayRef  # int32 [n]
    token_ids: ArrayRef  # int32 [sum(lengths)]
    reply: FloatDType = "float32"


class Cancel(Message, frozen=True):
    """Nobody waits for this request any more. Unknown ids are ignored."""

    request_id: Unsigned63


class Stats(Message, frozen=True):
    """What have you done so far?"""

    request_id: Unsigned63


# --- from a service -------------------------------------------------------------------------------------------


class Ready(Message, frozen=True):
    """I am here, this is me. `spec` and `tokenizer` only where the client's fingerprint was another."""

    protocol: int
    epoch: Unsigned63
    fingerprint: Fingerprint
    dim: Count
    limits: Limits
    credits: Credits
    session: Unsigned63 = (
        0  # of this client at this service; another one: what was outstanding is forgotten, send again
    )
    hosts_encoder: bool = False  # this service takes token ids (SuppliedTokens, Encode)
    device: str = "cpu"
    spec: ModelSpec | None = None
    tokenizer: ArrayRef | None = None  # uint8: tokenizer.json without truncation and padding
    self_check: SelfCheck | None = None  # of the encoder, where this service has one


class Alignment(Record, frozen=True):
    """What each query row matched: the document row whose similarity went into the score.

    n entries, pair after pair: as many as the pair's query has rows; none where its document has none.
    """

    document_rows: ArrayRef  # int32 [n]: of its own document; of equal similarities the first
    similarities: ArrayRef  # float32 [n]: they add up to the pair's score, within rounding


class Scores(Message, frozen=True):
    """The scores of all pairs of a Score, in their order."""

    request_id: Unsigned63
    scores: ArrayRef  # float32 [num_pairs], raw MaxSim
    rows: ArrayRef  # int32 [num_queries + num_documents]: scored rows
    prompt_tokens: ArrayRef  # int32 [num_queries + num_documents]
    credits: Credits
    score_us: Count = 0  # time in the kernel
    queue_us: Count = 0  # from admission to the kernel
    alignment: Alignment | None = None  # where the Score wants it


class Missing(Message, frozen=True):
    """These keys are not in the store and were not supplied; nothing was held or done."""

    request_id: Unsigned63
    which: ArrayRef  # int32 [n]: positions in the key frame
    credits: Credits
    deaths: Count = 0  # how many workers died while this request was running in them


class Encoded(Message, frozen=True):
    """The token embeddings of an Encode's texts, one after the other."""

    request_id: Unsigned63
    rows: ArrayRef  # int32 [n]
    embeddings: ArrayRef  # the dtype asked for, [sum(rows), dim]
    credits: Credits


class Failed(Message, frozen=True):
    """No answer, and why. `message` is safe to show to a user."""

    request_id: Unsigned63
    code: ErrorCode
    message: str
    retry_after_ms: Count = 0
    which: Count | None = None  # position in the key frame, where one text is to blame


class Statistics(Message, frozen=True):
    """Counters and gauges since the service's start, by name."""

    request_id: Unsigned63
    values: dict[str, float]


ToService = Hello | Score | Encode | Cancel | Stats
ToClient = Ready | Scores | Missing | Encoded | Failed | Statistics
