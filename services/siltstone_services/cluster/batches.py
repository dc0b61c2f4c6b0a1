"""Calls that travel together: while one hop is under way, what comes meanwhile waits for the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Batches(Generic[Q, A]):
    """Sends questions in batches, one batch at a time: nobody waits for company, and nobody travels alone for long."""

    def __init__(
        self, send: Callable[[Sequence[Q]], Awaitable[Sequence[A | BaseException]]], max_questions: int
    ) -> None:
        """`send` answers every question of a batch, in order: with an answer, or with the error it is told."""
        self._send, self._max = send, max_questions
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._task: asyncio.Task[None] | None = None
        self.num_hops = 0

    async def ask(self, question: Q) -> A:
        """Returns the answer to a question.

        Raises: what `send` raised, or gave for this question.
        """
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._max], self._waiting[self._max :]
                # Whoever has gone meanwhile needs no answer.
                batch = [(question, answer) for question, answer in batch if not answer.done()]
                if batch:
                    await self._hop(batch)
        finally:
            self._task = None

    async def _hop(self, batch: Sequence[tuple[Q, asyncio.Future[A]]]) -> None:
        self.num_hops += 1
        told: Sequence[A | BaseException]
        try:
            told = await self._send([question for question, _ in batch])
        except Exception as error:
            told = [error] * len(batch)
        for (_, answer), one in zip(batch, told, strict=True):
            if answer.done():
                continue
            if isinstance(one, BaseException):
                answer.set_exception(one)
            else:
                answer.set_result(one)
