"""Answers and scores under a user's memory: how a request becomes work of the worker's thread, and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from siltstone.errors import InvalidInput, SiltstoneError
from siltstone.inference.rows import Answer
from siltstone.memory.shard import Shard
from siltstone.ports import TextRecall, Tokenizer
from siltstone.values import (
    AnswerEnd,
    AnswerPart,
    FinishReason,
    GenerateRequest,
    Interaction,
    InteractionKind,
    Message,
    Role,
    UserKey,
)
from siltstone_services.lanes import Lanes
from siltstone_services.prompts import recall_lines, render_prompt, render_scored
from siltstone_services.streams import Piece, Stream, Streams
from siltstone_services.succession import Ask
from siltstone_services.upkeep import Upkeep
from siltstone_services.worker import Worker


@dataclass(frozen=True, slots=True)
class Pinned:
    """What an answer is given from: the core version, and the state of the user."""

    core: str
    sequence: int


def exchange_of(request: GenerateRequest, text: str, now_ms: int) -> Interaction | None:
    """Returns an answered question as something to be learned; None where that is not wished."""
    if not (request.interaction_id and request.consent.learn and text.strip()):
        return None
    return Interaction(
        request.interaction_id,
        request.owner,
        InteractionKind.CONVERSATION,
        now_ms,
        (*request.messages, Message(Role.ASSISTANT, text)),
        consent=request.consent,
        trace=request.trace,
    )


class Answers:
    """Answers and scores, one node's."""

    def __init__(
        self,
        lanes: Lanes,
        shard: Shard,
        upkeep: Upkeep,
        streams: Streams,
        worker: Worker,
        recall: TextRecall,
        tokenizer: Tokenizer,
        ask: Ask,
    ) -> None:
        self._lanes, self._shard, self._upkeep, self._streams = lanes, shard, upkeep, streams
        self._worker, self._recall, self._tokenizer, self._ask = worker, recall, tokenizer, ask

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Pinned | AnswerPart | AnswerEnd, None]:
        """Answers under the user's committed memory of this moment, and says first which that is. Records nothing."""
        pieces: asyncio.Queue[Piece] = asyncio.Queue()
        stream = Stream(request.owner, pieces)
        try:
            answer = await self._ask(lambda: self._begin(request, stream))
            yield Pinned(stream.core, stream.sequence)
            while not isinstance(piece := await pieces.get(), FinishReason):
                if isinstance(piece, SiltstoneError):
                    raise piece
                yield piece
        finally:
            self._worker.call(lambda: self._streams.give_up(stream))
        num_prompt, num_answer = len(answer.prompt), len(answer.tokens)
        yield AnswerEnd(piece, stream.core, stream.sequence, num_prompt, num_answer, stream.recalled)

    def _begin(self, request: GenerateRequest, stream: Stream) -> Answer:
        """Pins the user's state and hands the prompt to the engine. A bare core's answer needs no memory at all."""
        coefficients, recalled = None, []
        lane = self._lanes.leading
        if not request.core_only:
            memory = self._shard.memory_of(request.owner)
            self._upkeep.notice(memory)
            lane = self._lanes.of(memory.core)
            stream.sequence = memory.sequence
            recalled = recall_lines(self._recall, request.recall, memory.reservoir.lines(), request.messages)
            if request.recall != "text" and memory.sequence > 0:
                coefficients = memory.coefficients()
        prompt = render_prompt(self._tokenizer, request, recalled)
        while recalled and len(prompt) >= lane.engine.max_context:
            # The least fitting line goes first: what was asked matters more than what might help to answer it.
            recalled = recalled[:-1]
            prompt = render_prompt(self._tokenizer, request, recalled)
        stream.core, stream.recalled = lane.version, tuple(recalled)
        answer = lane.engine.submit(prompt, coefficients, request.sampling)
        self._streams.begin(stream, answer)
        return answer

    async def score(
        self, owner: UserKey, prompt: Sequence[Message], answers: Sequence[str]
    ) -> list[tuple[float, float]]:
        """Scores on the worker's thread, between two steps."""
        before = render_scored(self._tokenizer, prompt)
        continuations = [self._tokenizer.encode(answer) for answer in answers]
        if not answers or not all(continuations):
            raise InvalidInput("answers", "at least one, none of them empty", f"{len(answers)}")

        def run() -> list[tuple[float, float]]:
            memory = self._shard.memory_of(owner)
            self._upkeep.put_off()
            self._upkeep.notice(memory)
            coefficients = memory.coefficients() if memory.sequence else None
            return self._lanes.of(memory.core).engine.score(before, continuations, coefficients)

        return await self._ask(run)
