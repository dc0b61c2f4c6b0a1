"""The night of the demo: the core learns what the office agrees on, a newcomer asks, a bad night is refused."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from siltstone.config import SiltstoneConfig
from siltstone.evaluation.forced_choice import Accuracy, accuracy, choose
from siltstone.evaluation.office_material import OfficeUser
from siltstone.evaluation.office_questions import Question, own_questions, private_questions, shared_questions
from siltstone.sleep_values import CoreVersion
from siltstone.values import GenerateRequest, Message, Role, Sampling, UserKey
from siltstone_services.demo_outcome import NightOutcome
from siltstone_services.demo_setting import TENANT, Setting, at_once, key_of
from siltstone_services.judging import Exam
from siltstone_services.night_apart import NightsApart
from siltstone_services.version_records import open_registry

NEWCOMER: Final = UserKey(TENANT, "newcomer")
_LOOK_S: Final = 0.2
_PATIENCE_S: Final = 600.0

_Scores = list[float]


@dataclass(frozen=True, slots=True)
class Asking:
    """What a newcomer, whom no memory knows, is asked: how likely each value of each question is, and free answers."""

    shared: tuple[_Scores, ...]
    private: tuple[_Scores, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Night:
    core: str
    version: CoreVersion
    num_dreams: int


async def spend_night(setting: Setting, config: SiltstoneConfig, exam: Exam | None = None) -> NightOutcome:
    """Lets the office's server sleep, and shows what came of it. Without an exam, that of the package is taken.

    1. Ask a newcomer, and everybody for what they know of themselves. 2. Sleep. 3. If the gate accepts, promote: the
    server follows. 4. Ask the newcomer again. 5. Let everybody come back: each is carried over; ask them again. 6. Roll
    back: the newcomer is answered as at first. 7. Sleep badly, over the same dreams.
    """
    # The server is still there, and asked; a night beside it in one process took a quarter longer.
    with NightsApart() as nights:
        return await _spend_night(setting, config, partial(_sleep, setting, nights, exam))


async def _spend_night(
    setting: Setting, config: SiltstoneConfig, sleep: Callable[[SiltstoneConfig], Awaitable[_Night]]
) -> NightOutcome:
    say, clock = setting.screen.say, setting.clock
    evening_s = clock.monotonic_s()
    say("a newcomer, whom no memory knows, is asked what the office knows")
    asked_first = await _ask_newcomer(setting)
    known_first = await _ask_everybody(setting)
    say("the server sleeps: what at least three people's memories agree on is dreamt, and learned by a candidate core")
    started_s = clock.monotonic_s()
    night = await sleep(config)
    elapsed_s = clock.monotonic_s() - started_s
    say(f"version {night.version.number} is {night.version.state.value}, after {elapsed_s:.0f} s")
    shared = private = recalled = difference = rollback_s = None
    num_carried_over = 0
    answers_after: tuple[str, ...] = ()
    is_accepted = night.version.verdict is not None and night.version.verdict.accepted
    if is_accepted:
        first = (await setting.client.status()).core
        _promote(config, night.version.number)
        await _until(lambda: _leads(setting, night.version.digest))
        say(f"version {night.version.number} serves; the newcomer asks again")
        asked_then = await _ask_newcomer(setting)
        answers_after = asked_then.answers
        shared = _raised(asked_then.shared, asked_first.shared)
        private = _raised(asked_then.private, asked_first.private)
        say("everybody comes back, and is carried over to it")
        num_carried_over = await _carry_over(setting, first)
        recalled = accuracy(await _ask_everybody(setting), [0] * len(known_first))
        started_s = clock.monotonic_s()
        _roll_back(config)
        await _until(lambda: _leads(setting, night.core))
        rollback_s = clock.monotonic_s() - started_s
        say(f"rolled back in {rollback_s:.1f} s; the newcomer asks once more")
        again = await _ask_newcomer(setting)
        pairs = zip((*again.shared, *again.private), (*asked_first.shared, *asked_first.private), strict=True)
        difference = max(abs(new - old) for news, olds in pairs for new, old in zip(news, olds, strict=True))
    say("a bad night: the same dreams, learned in haste and without anchors")
    bad = await sleep(_badly(config))
    say(f"version {bad.version.number} is {bad.version.state.value}")
    return NightOutcome(
        clock.monotonic_s() - evening_s,
        elapsed_s,
        night.version,
        night.num_dreams,
        bad.version,
        asked_first.answers,
        answers_after,
        shared,
        private,
        num_carried_over,
        accuracy(known_first, [0] * len(known_first)),
        recalled,
        rollback_s,
        difference,
    )


async def _sleep(setting: Setting, nights: NightsApart, exam: Exam | None, config: SiltstoneConfig) -> _Night:
    with setting.screen.counting("distilling", config.sleep.distil.num_steps) as count:
        slept = await asyncio.to_thread(nights.sleep, config, exam, setting.screen.say, partial(count, 0))
    with open_registry(config) as registry:
        version = next(one for one in registry.list() if one.number == slept.version)
    return _Night(slept.core, version, slept.num_dreams)


def _badly(config: SiltstoneConfig) -> SiltstoneConfig:
    """Returns a way of learning that nobody should want: in haste, and nothing of what the core was is held."""
    unheld = dataclasses.replace(
        config.sleep.distil, num_anchors=0, anchor_weight=0.0, num_secrets=0, secret_weight=0.0
    )
    distil = dataclasses.replace(unheld, rate=2e-2, num_steps=40)
    return dataclasses.replace(config, sleep=dataclasses.replace(config.sleep, distil=distil, most_drift_nats=0.0))


def _promote(config: SiltstoneConfig, number: int) -> None:
    with open_registry(config) as registry:
        champion = registry.champion()
        registry.promote(number, champion.epoch if champion else 0)


def _roll_back(config: SiltstoneConfig) -> None:
    with open_registry(config) as registry:
        champion = registry.champion()
        registry.rollback(champion.epoch if champion else 0)


async def _leads(setting: Setting, digest: str) -> bool:
    return (await setting.client.status()).core.startswith(digest)


async def _until(what: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(_PATIENCE_S):
        while not await what():
            await asyncio.sleep(_LOOK_S)


async def _ask_newcomer(setting: Setting) -> Asking:
    shared = shared_questions(setting.office)
    private = private_questions(setting.office, setting.plan.users)
    with setting.screen.counting("newcomer's questions", len(shared) + len(private)) as count:

        async def score(question: Question) -> _Scores:
            scores = await _score(setting, NEWCOMER, question)
            count(0)
            return [user for user, _ in scores]

        scores = await at_once([*shared, *private], score, setting.plan.max_scores_at_once)

    async def answer(question: str) -> str:
        sampling = Sampling(max_tokens=setting.plan.max_answer_tokens)
        request = GenerateRequest(NEWCOMER, (Message(Role.USER, question),), sampling, "weights")
        return (await setting.client.answer(request))[0]

    answers = await at_once([question.text for question in shared], answer, setting.plan.max_answers_at_once)
    return Asking(tuple(scores[: len(shared)]), tuple(scores[len(shared) :]), tuple(answers))


async def _ask_everybody(setting: Setting) -> list[int | None]:
    """Returns what each user's model raises most over its core for every fact of the user; 0 is the right one."""
    asked = [
        (user, question)
        for user in setting.plan.users
        for question in own_questions(setting.office, setting.plan.facts(user))
    ]
    with setting.screen.counting("everybody's own facts", len(asked)) as count:

        async def ask(of_user: tuple[OfficeUser, Question]) -> int | None:
            user, question = of_user
            scores = await _score(setting, key_of(user), question)
            count(0)
            return choose([own for own, _ in scores], [core for _, core in scores])

        return await at_once(asked, ask, setting.plan.max_scores_at_once)


async def _score(setting: Setting, owner: UserKey, question: Question) -> list[tuple[float, float]]:
    prompt = Message(Role.USER, question.text), Message(Role.ASSISTANT, question.stem)
    return await setting.client.score(owner, prompt, [f" {value}" for value in question.values])


async def _carry_over(setting: Setting, first: str) -> int:
    """Lets everybody ask something, and waits until all are on the new version, or have been tried in vain.

    Returns how many have moved.
    """
    users = setting.plan.users

    async def come_back(user: OfficeUser) -> None:
        await _score(setting, key_of(user), own_questions(setting.office, setting.plan.facts(user))[0])

    await at_once(users, come_back, setting.plan.max_scores_at_once)

    async def is_settled() -> bool:
        status = await setting.client.status()
        return status.num_rebased + status.num_pinned >= len(users)

    await _until(is_settled)
    cards = await at_once(users, lambda user: setting.client.memory(key_of(user)), len(users))
    return sum(card.core != first for card in cards)


def _raised(after: Sequence[_Scores], before: Sequence[_Scores]) -> Accuracy:
    chosen = [choose(new, old) for new, old in zip(after, before, strict=True)]
    return accuracy(chosen, [0] * len(chosen))
