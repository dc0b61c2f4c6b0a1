"""A conversation with the model, as one user."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from siltstone.adapters.system_clock import SystemClock
from siltstone.errors import InvalidInput, Overloaded, SiltstoneError
from siltstone.values import (
    AnswerEnd,
    AnswerPart,
    Consent,
    GenerateRequest,
    Interaction,
    InteractionKind,
    Message,
    RecallMode,
    Role,
    Sampling,
    UserKey,
)
from siltstone_services.cli.options import Reach
from siltstone_services.client import SiltstoneClient
from siltstone_services.commands.connection import connected
from siltstone_services.commands.screen import counted, err, out, visible

_HELP: Final = """\
/correct TEXT  the last answer should have been TEXT
/up, /down     the last answer was good, was not good
/new           start a fresh conversation
/memory        how large this memory is
/quit          end (or Ctrl-D); Ctrl-C gives an answer up"""
_QUESTION: Final = "May your memory learn from this conversation? It stays yours, and you can remove it. [y/N] "


@dataclass(frozen=True, slots=True)
class ChatWish:
    """Who talks, and how answers are to be given."""

    tenant: str
    user: str
    recall: RecallMode
    is_agreed: bool | None
    is_shared: bool
    core_only: bool
    max_tokens: int
    temperature: float
    top_p: float
    seed: int

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        return Sampling(self.max_tokens, self.temperature, self.top_p, self.seed)


def run(reach: Reach, wish: ChatWish, message: str | None) -> None:
    """Answers one message, or talks until the user ends it."""
    asyncio.run(_run(reach, wish, message))


async def _run(reach: Reach, wish: ChatWish, message: str | None) -> None:
    async with connected(reach) as client:
        if message is not None:
            await Conversation(client, wish, is_agreed=bool(wish.is_agreed)).say(message)
            return
        lines = Lines()
        is_agreed = wish.is_agreed
        if is_agreed is None:
            reply = await lines.next(_QUESTION)
            is_agreed = reply is not None and reply.strip().lower() in ("y", "yes")
        conversation = Conversation(client, wish, is_agreed=is_agreed)
        while (line := await lines.next("> ")) is not None:
            if not await conversation.take(line.strip()):
                break


class Lines:
    """What is typed, a line at a time, without stopping the loop: an embedded server works on meanwhile."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._source = sys.stdin
        self._wanted = threading.Semaphore(0)
        self._lines: asyncio.Queue[str] = asyncio.Queue()
        # A thread that waits for the keyboard cannot be stopped; as a daemon it holds nobody up at the end.
        threading.Thread(target=self._read, name="siltstone-keyboard", daemon=True).start()

    async def next(self, prompt: str) -> str | None:
        """Returns the next line, or None at the end."""
        out().print(prompt, end="", markup=False)
        self._wanted.release()
        line = await self._lines.get()
        return line or None

    def _read(self) -> None:
        while True:
            self._wanted.acquire()
            try:
                line = self._source.readline()
            except ValueError:
                line = ""
            if self._loop.is_closed():
                return
            self._loop.call_soon_threadsafe(self._lines.put_nowait, line)
            if not line:
                return


class Conversation:
    """What was said so far, and what may be done with it."""

    def __init__(self, client: SiltstoneClient, wish: ChatWish, *, is_agreed: bool) -> None:
        self._client, self._wish = client, wish
        self._owner = UserKey(wish.tenant, wish.user)
        self._consent = Consent(learn=is_agreed, share=is_agreed and wish.is_shared)
        self._messages: tuple[Message, ...] = ()

    async def take(self, line: str) -> bool:
        """Does what a line asks for, and returns whether the conversation goes on. A refused line does not end it."""
        word, _, rest = line.partition(" ")
        try:
            match word:
                case "":
                    pass
                case "/quit" | "/exit":
                    return False
                case "/help":
                    out().print(_HELP, markup=False)
                case "/new":
                    self._messages = ()
                    out().print("a fresh conversation")
                case "/memory":
                    await self._tell_memory()
                case "/correct":
                    await self._feed_back(InteractionKind.CORRECTION, rest.strip())
                case "/up":
                    await self._feed_back(InteractionKind.THUMB_UP)
                case "/down":
                    await self._feed_back(InteractionKind.THUMB_DOWN)
                case _ if word.startswith("/"):
                    raise InvalidInput("command", "one that /help names", word[:20])
                case _:
                    await self.say(line)
        except (InvalidInput, Overloaded) as error:
            err().print(str(error), style="red", markup=False)
        return True

    async def say(self, text: str) -> None:
        """Asks, prints the answer as it comes, and says what gave it."""
        messages = (*self._messages, Message(Role.USER, text))
        request = GenerateRequest(
            self._owner,
            messages,
            self._wish.sampling,
            self._wish.recall,
            self._wish.core_only,
            uuid.uuid4().hex if self._consent.learn else "",
            self._consent,
        )
        answer = ""
        console = out()
        end: AnswerEnd | None = None
        async with aclosing(self._client.generate(request)) as items, _interruptible() as is_given_up:
            try:
                async for item in items:
                    if isinstance(item, AnswerPart):
                        answer += item.text
                        console.print(visible(item.text), end="", markup=False, soft_wrap=True)
                    else:
                        end = item
            except asyncio.CancelledError:
                if not is_given_up():
                    raise
            except SiltstoneError:
                console.print()
                raise
        console.print()
        if end is None:
            err().print("given up", style="dim")
            return
        self._messages = (*messages, Message(Role.ASSISTANT, answer))
        self._tell_end(end)

    def _tell_end(self, end: AnswerEnd) -> None:
        told = [f"core {end.core[:12]}", f"snapshot {end.snapshot_sequence}", counted(end.num_answer_tokens, "token")]
        if end.recalled:
            told.append(f"{counted(len(end.recalled), 'line')} recalled")
        if end.recorded is not None:
            told.append("recorded")
        err().print(" · ".join(told), style="dim", soft_wrap=True)

    async def _feed_back(self, kind: InteractionKind, correction: str = "") -> None:
        if len(self._messages) < 2:
            raise InvalidInput(f"/{kind}", "an answer to be about", "none yet")
        if not self._consent.learn:
            raise InvalidInput(f"/{kind}", "your consent to learn from this conversation (chat --consent)", "none")
        told = Interaction(
            uuid.uuid4().hex,
            self._owner,
            kind,
            SystemClock().now_ms(),
            self._messages,
            correction,
            self._consent,
        )
        receipt = await self._client.feedback(told, wait_absorbed=True)
        if receipt.parked is not None:
            err().print(f"parked: {receipt.parked.reason}: {receipt.parked.detail}", soft_wrap=True, markup=False)
            return
        if correction:
            self._messages = (*self._messages[:-1], Message(Role.ASSISTANT, correction))
        out().print("learned")

    async def _tell_memory(self) -> None:
        card = await self._client.memory(self._owner)
        out().print(
            f"snapshot {card.sequence}, {counted(card.num_interactions, 'interaction')}, "
            f"{counted(card.position_tokens, 'token')}, {counted(card.size_bytes, 'byte')}",
            soft_wrap=True,
        )


@asynccontextmanager
async def _interruptible() -> AsyncIterator[_GivenUp]:
    """Lets Ctrl-C cancel what runs in the block instead of ending the program."""
    loop, task, given_up = asyncio.get_running_loop(), asyncio.current_task(), _GivenUp()
    assert task is not None

    def give_up() -> None:
        given_up.is_so = True
        task.cancel()

    loop.add_signal_handler(signal.SIGINT, give_up)
    try:
        yield given_up
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        if given_up.is_so:
            task.uncancel()


@dataclass
class _GivenUp:
    is_so: bool = False

    def __call__(self) -> bool:
        return self.is_so
