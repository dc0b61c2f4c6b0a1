"""Answers on their way from the worker's thread to their readers on the event loop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from siltstone.errors import Corrupt, SiltstoneError, Unavailable
from siltstone.inference.engine import Progress
from siltstone.inference.rows import Answer
from siltstone.ports import Tokenizer
from siltstone.values import AnswerPart, FinishReason, UserKey
from siltstone_services.lanes import Lanes

Piece = AnswerPart | FinishReason | SiltstoneError


@dataclass(slots=True, eq=False)
class Stream:
    """One answer's way. Without an `answer` it has not begun yet.

    `core`, `sequence` and `recalled` name the version and the state of the user that were pinned; `text` is what was
    answered, once it ended.
    """

    owner: UserKey
    pieces: asyncio.Queue[Piece]
    answer: Answer | None = None
    core: str = ""
    sequence: int = 0
    recalled: tuple[str, ...] = ()
    num_told_chars: int = 0
    text: str = ""


class Streams:
    """The streams of the answers under way. Its methods are called on the worker's thread, but for `fail`."""

    def __init__(self, lanes: Lanes, tokenizer: Tokenizer, loop: asyncio.AbstractEventLoop) -> None:
        self._lanes, self._tokenizer, self._loop = lanes, tokenizer, loop
        self._running: dict[int, Stream] = {}
        self.answered_tokens = 0

    def begin(self, stream: Stream, answer: Answer) -> None:
        """Starts to tell a stream of its answer."""
        stream.answer = answer
        self._running[id(answer)] = stream

    def give_up(self, stream: Stream) -> None:
        """Drops a stream's answer, if it still runs."""
        if stream.answer is not None and self._running.pop(id(stream.answer), None) is not None:
            self._lanes.give_up(stream.answer)

    def forget(self, owner: UserKey) -> None:
        """Ends the answers given from a memory that is being erased."""
        for stream in [stream for stream in self._running.values() if stream.owner == owner]:
            self.give_up(stream)
            self._tell(stream, Unavailable("the answer", "its user was forgotten"))

    def on_progress(self, progress: list[Progress]) -> None:
        """Tells the readers what a step of an engine gave."""
        for item in progress:
            stream = self._running.get(id(item.answer))
            if stream is None:
                continue
            if item.is_broken:
                del self._running[id(item.answer)]
                what = f"memory of {stream.owner}" if item.answer.coefficients is not None else "the core"
                self._tell(stream, Corrupt(what, "an answer", "NaN or infinity in place of probabilities"))
                continue
            if item.token is not None:
                self.answered_tokens += 1
            text = self._tokenizer.decode(item.answer.tokens)
            # A character may still miss its last bytes: it is told with the token that completes it.
            if item.finished is None and text.endswith("�"):
                continue
            if len(text) > stream.num_told_chars:
                self._tell(stream, AnswerPart(text[stream.num_told_chars :]))
                stream.num_told_chars = len(text)
            if item.finished is not None:
                stream.text = text
                del self._running[id(item.answer)]
                self._tell(stream, item.finished)

    def _tell(self, stream: Stream, piece: Piece) -> None:
        self._loop.call_soon_threadsafe(stream.pieces.put_nowait, piece)

    def fail(self, error: SiltstoneError) -> None:
        """Ends every stream with an error: on the event loop, when the worker's thread has ended."""
        for stream in self._running.values():
            stream.pieces.put_nowait(error)
        self._running.clear()
