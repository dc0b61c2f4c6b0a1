"""Text recall by BM25 (bm25s), with the stemmer that bm25s offers for it (PyStemmer)."""

from __future__ import annotations

import hashlib
import re
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import bm25s
import Stemmer  # type: ignore[import-not-found]
from bm25s.stopwords import STOPWORDS_EN_PLUS

_WORD = re.compile(r"\w+")
_STOP_WORDS = frozenset(STOPWORDS_EN_PLUS)


@dataclass(frozen=True, slots=True)
class Bm25RecallConfig:
    """How text recall searches."""

    language: str = "english"
    """Language of the stemmer, by its Snowball name. Words of another language lose no more than an ending."""
    max_indexes: int = 32
    """Indexes kept for lines searched before; one of a full reservoir takes about 1 MB."""


class Bm25Recall:
    """Searches the lines it is given and no others: it holds nothing that a caller could find without having them."""

    def __init__(self, config: Bm25RecallConfig | None = None) -> None:
        self._config = config or Bm25RecallConfig()
        Stemmer.Stemmer(self._config.language)  # an unknown language fails here, not at the first search
        self._indexes: OrderedDict[bytes, _Index | None] = OrderedDict()
        self._lock = threading.Lock()

    def search(self, lines: Sequence[str], query: str, max_lines: int) -> list[str]:
        """See `TextRecall.search`."""
        asked = self._tokens([query])[0]
        index = self._index_of(lines) if asked and max_lines > 0 else None
        if index is None:
            return []
        telling = [token for word, token in asked if word not in _STOP_WORDS] or [token for _, token in asked]
        scores = index.bm25.get_scores(telling)
        stems = tuple(token for _, token in asked)
        best = sorted((at for at in range(len(index.lines)) if scores[at] > 0), key=lambda at: (-scores[at], -at))
        return [index.lines[at] for at in best if index.stems[at] != stems][:max_lines]

    def clear(self) -> None:
        """See `TextRecall.clear`."""
        with self._lock:
            self._indexes.clear()

    @property
    def num_indexes(self) -> int:
        """How many indexes are kept now."""
        return len(self._indexes)

    def _index_of(self, lines: Sequence[str]) -> _Index | None:
        digest = hashlib.blake2b(digest_size=32)
        for line in lines:
            data = line.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "big") + data)
        key = digest.digest()
        with self._lock:
            if key in self._indexes:
                self._indexes.move_to_end(key)
                return self._indexes[key]
        index = self._build(lines)
        with self._lock:
            self._indexes[key] = index
            while len(self._indexes) > self._config.max_indexes:
                self._indexes.popitem(last=False)
        return index

    def _build(self, lines: Sequence[str]) -> _Index | None:
        # Said twice is not twice as telling: a repeated line would make its own words look common. The later one stays.
        distinct = list(dict.fromkeys(reversed(lines)))[::-1]
        tokens = [tuple(token for _, token in words) for words in self._tokens(distinct)]
        kept = [at for at, stems in enumerate(tokens) if stems]
        if not kept:
            return None
        bm25 = bm25s.BM25(method="lucene", backend="numpy")
        bm25.index([list(tokens[at]) for at in kept], show_progress=False)
        return _Index(bm25, [distinct[at] for at in kept], [tokens[at] for at in kept])

    def _tokens(self, texts: Sequence[str]) -> list[list[tuple[str, str]]]:
        """Returns, for each text, its words and their stems."""
        stemmer = Stemmer.Stemmer(self._config.language)  # one per call: a stemmer must not be shared between threads
        found = [_WORD.findall(_plain(text)) for text in texts]
        return [list(zip(words, stemmer.stemWords(words), strict=True)) for words in found]


@dataclass(frozen=True, slots=True)
class _Index:
    bm25: bm25s.BM25
    lines: list[str]
    stems: list[tuple[str, ...]]


def _plain(text: str) -> str:
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))
