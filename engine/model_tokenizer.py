"""A checkpoint's tokenizer as API servers get it, and the ids that its settings name. Does not import torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from engine.model_files import JsonFile, ModelError, ModelFiles

NUM_SPECIAL_TOKENS = 2  # [CLS] and [SEP]

# tokenizer_config.json -> BertNormalizer in tokenizer.json
_NORMALIZER_KEYS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
# What transformers makes XLM-R's tokenizer of, whatever tokenizer.json says of words
_XLMR_WORDS = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "WhitespaceSplit"},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    ],
}
_OF_BLANKS = ("Replace", "Strip")  # normalizers that such words make idle


class ModelTokenizer:
    """tokenizer.json without truncation and padding: as state of a shared object they are races (docs/models.md).

    Raises:
        ModelError: there is none, or it says other things than tokenizer_config.json (the reference follows that one).
    """

    def __init__(self, files: ModelFiles, folder: str = "") -> None:
        prefix = f"{folder}/" if folder else ""
        raw = files.read_json(f"{prefix}tokenizer.json")
        self.path = raw.path
        self._raw: dict[str, Any] = {**raw.values, "truncation": None, "padding": None}
        self._settings = files.read_json_if_there(f"{prefix}tokenizer_config.json")
        self._special = files.read_json_if_there(f"{prefix}special_tokens_map.json")
        self._is_xlmr = self._is_of_xlmr()
        if self._is_xlmr:
            self._follow_xlmr()
        self._tokenizer = self._build()  # as the file has it; what is changed later changes no id of its vocabulary
        self._check_agreement()

    @property
    def json(self) -> bytes:
        """What API servers make their tokenizer of."""
        return json.dumps(self._raw, ensure_ascii=False).encode()

    @property
    def drops_blanks(self) -> bool:
        """Whether blanks only separate words, as for BERT. Elsewhere a blank is part of the word after it."""
        return isinstance(self._tokenizer.model, WordPiece)

    @property
    def vocab_size(self) -> int:
        """Added tokens included."""
        return int(self._tokenizer.get_vocab_size())

    def model_max_length(self, positions: int) -> int:
        """What texts are cut to where nothing else says it: never more than there are positions."""
        value = self._settings.values.get("model_max_length")
        # transformers writes 1e30 where there is no limit
        return min(int(value), positions) if isinstance(value, int | float) and value >= 1 else positions

    def lower_case(self) -> None:
        """Lower-case every text first (`do_lower_case` of sentence-transformers)."""
        first, given = {"type": "Lowercase"}, self._raw.get("normalizer")
        if given is None:
            self._raw["normalizer"] = first
        else:
            rest = given["normalizers"] if given["type"] == "Sequence" else [given]
            if first not in rest:
                self._raw["normalizer"] = {"type": "Sequence", "normalizers": [first, *rest]}

    def register_marker(self, marker: Any, source: JsonFile, key: str) -> tuple[int, str]:
        """A marker becomes a special token: one piece wherever it stands, as in the reference.

        Args:
            marker: as the checkpoint writes it, perhaps with a blank at its end.

        Returns:
            Its id, and what of `marker` is not the token: a blank, or nothing.

        Raises:
            ModelError: it is not exactly one known token. It would become UNK, or several pieces, silently. Or what
                follows it would be read otherwise than at the beginning of a text.
        """
        if not isinstance(marker, str):
            raise source.error(key, "the text of a token")
        for token in (marker, marker.strip()):
            token_id = self._tokenizer.token_to_id(token) if token else None
            if token_id is not None and token_id != self._unknown_id():
                if not self.drops_blanks and self._changes_what_follows(token):
                    raise source.error(key, f"a token after which {self.path.name} reads a text like any other")
                self._add_special_token(token, int(token_id))
                return int(token_id), marker[len(marker.rstrip()) :] if token != marker else ""
        raise source.error(key, f"exactly one token of {self.path.name}, which does not know it")

    def mask_id(self) -> int:
        """The id of expansion rows."""
        given = [file.values.get("mask_token") for file in (self._settings, self._special)]
        token = next(filter(None, given), "<mask>" if self._is_xlmr else "[MASK]")
        return self.id_of(token["content"] if isinstance(token, dict) else token, self._settings, "mask_token")

    def id_of(self, token: Any, source: JsonFile, key: str) -> int:
        """The id of one token.

        Raises:
            ModelError: there is no such token.
        """
        token_id = self._tokenizer.token_to_id(token) if isinstance(token, str) else None
        if token_id is None:
            raise ModelError(f"{source.path}: {key} is {token!r}, which {self.path.name} does not know")
        return int(token_id)

    def ids_of_prompt(self, prompt: str, source: JsonFile, key: str) -> list[int]:
        """The ids of a text that is put before every text.

        Raises:
            ModelError: it ends in the middle of a word, so that its ids would depend on what follows.
        """
        if not prompt:
            return []
        if prompt[-1].isalnum():
            raise ModelError(f"{source.path}: {key} is {prompt!r}; a prompt must end with a blank or punctuation")
        return [int(token_id) for token_id in self._build().encode(prompt, add_special_tokens=False).ids]

    def known_ids(self, words: Sequence[str]) -> list[int]:
        """The ids of the words that are one token each; others cannot be skipped, as in the reference."""
        ids = {word: self._tokenizer.token_to_id(word) for word in words}
        unknown = self._unknown_id()
        token = self._unknown_token()
        return sorted({int(i) for word, i in ids.items() if i is not None and (i != unknown or word == token)})

    def _build(self) -> Tokenizer:
        try:
            return Tokenizer.from_buffer(self.json)
        except ValueError as error:
            raise ModelError(f"{self.path}: not a tokenizer ({error})") from None

    def _unknown_id(self) -> int | None:
        token = self._unknown_token()
        return self._tokenizer.token_to_id(token) if token else None

    def _unknown_token(self) -> str | None:
        """WordPiece and BPE name it, Unigram numbers it."""
        token = getattr(self._tokenizer.model, "unk_token", None)
        number = self._raw["model"].get("unk_id")
        return token or (self._tokenizer.id_to_token(number) if isinstance(number, int) else None)

    def _changes_what_follows(self, token: str) -> bool:
        """Whether it takes the blanks after it, or words get their mark at the beginning of a text alone."""
        given = self._raw.get("pre_tokenizer") or {}
        steps = given.get("pretokenizers") or [given]
        takes = any(each.get("rstrip") for each in self._raw.get("added_tokens") or [] if each["content"] == token)
        return takes or any(step.get("prepend_scheme") == "first" for step in steps)

    def _add_special_token(self, token: str, token_id: int) -> None:
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        others = [entry for entry in self._raw.get("added_tokens") or [] if entry["content"] != token]
        added = [*others, {"id": token_id, "content": token, **flags}]
        self._raw["added_tokens"] = sorted(added, key=lambda entry: int(entry["id"]))

    def _is_of_xlmr(self) -> bool:
        """Whether transformers takes its own class for XLM-R, which it does too where no file names a class."""
        name = self._settings.get_str("tokenizer_class", "").removesuffix("Fast")
        return name == "XLMRobertaTokenizer" or (not name and self._raw.get("model", {}).get("type") == "Unigram")

    def _follow_xlmr(self) -> None:
        """That class keeps of tokenizer.json the vocabulary and the table of characters, and splits at blanks itself.

        Raises:
            ModelError: tokenizer.json changes texts in another way too.
        """
        given = self._raw.get("normalizer") or {"type": "Sequence"}
        steps = given.get("normalizers", []) if given.get("type") == "Sequence" else [given]
        kinds = [step.get("type") for step in steps]
        if unknown := [kind for kind in kinds if kind not in ("Precompiled", *_OF_BLANKS)]:
            raise ModelError(
                f"{self.path}: normalizer has {unknown[0]}, which transformers leaves out of an XLMRobertaTokenizer; "
                f"name another tokenizer_class in {self._settings.path.name}"
            )
        table = steps[kinds.index("Precompiled")] if "Precompiled" in kinds else None
        self._raw |= {"normalizer": table, "pre_tokenizer": _XLMR_WORDS}

    def _check_agreement(self) -> None:
        normalizer = self._raw.get("normalizer") or {}
        if normalizer.get("type") == "BertNormalizer":
            for key, name in _NORMALIZER_KEYS.items():
                if key in self._settings.values and self._settings.values[key] != normalizer.get(name):
                    raise ModelError(
                        f"{self._settings.path}: {key} is {self._settings.values[key]!r}, but {self.path.name} has "
                        f"{name} {normalizer.get(name)!r}; make the two say the same"
                    )
        specials = len(self._tokenizer.encode("").ids)
        if specials != NUM_SPECIAL_TOKENS:
            raise ModelError(
                f"{self.path}: post_processor adds {specials} special tokens to a text, expected [CLS] and [SEP]"
            )
