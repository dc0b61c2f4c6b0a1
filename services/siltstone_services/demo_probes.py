"""The parts of the demo's course that look for harm: to neutral text, to other users, to who wants to be forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from siltstone.evaluation.office_material import OfficeUser
from siltstone.values import Message, Role
from siltstone_services.demo_outcome import Bits, Forgetting, Isolation
from siltstone_services.demo_setting import Setting, at_once, key_of
from siltstone_services.demo_teaching import told

_LEARNED_LATER: Final = (
    "I have started to learn Welsh in the evenings.",
    "My new desk stands beside the tall window.",
    "I will be away for two weeks in the summer.",
)
"""What one user says while the others are watched."""

_Scores = list[tuple[float, float]]


async def read_held_out(setting: Setting) -> tuple[dict[str, Bits], dict[str, Bits]]:
    """Returns, by user, the bits per byte of neutral passages and of sentences in which that user says the facts anew.

    No memory was ever shown any of it. The passages turn from user to user, so that together all are read.
    """
    plan, passages = setting.plan, setting.office.held_out
    with setting.screen.counting("held-out text", 2 * len(plan.users)) as count:

        async def bits(user: OfficeUser, texts: Sequence[str]) -> Bits:
            scores = await setting.client.score(key_of(user), (), texts)
            count(0)
            num_bytes = sum(len(text.encode()) for text in texts)
            return Bits.of(sum(user for user, _ in scores), sum(core for _, core in scores), num_bytes)

        async def neutral(user: OfficeUser) -> Bits:
            first = plan.users.index(user) * plan.num_passages
            return await bits(user, [passages[(first + i) % len(passages)].text for i in range(plan.num_passages)])

        async def own_words(user: OfficeUser) -> Bits:
            values = [fact.value for fact in plan.facts(user)]
            return await bits(user, [text for text in user.paraphrases if any(value in text for value in values)])

        of_neutral = await at_once(plan.users, neutral, plan.max_scores_at_once)
        of_own = await at_once(plan.users, own_words, plan.max_scores_at_once)
    names = [user.id for user in plan.users]
    return dict(zip(names, of_neutral, strict=True)), dict(zip(names, of_own, strict=True))


async def isolate(setting: Setting) -> Isolation:
    """Lets one user learn more and compares the memories and scores of others, bit for bit, with those from before."""
    learner, *others = setting.plan.users
    watched = others[: setting.plan.num_watched]
    everyone = [learner, *watched]
    setting.screen.say(f"{learner.name} says {len(_LEARNED_LATER)} things more; {len(watched)} others are watched")
    before = {user.id: await _state(setting, user) for user in everyone}
    said = [told(setting, learner, f"later-{number}", text) for number, text in enumerate(_LEARNED_LATER)]
    await setting.client.record(said, wait_absorbed=True)
    after = {user.id: await _state(setting, user) for user in everyone}
    pairs = [pair for user in watched for pair in zip(before[user.id], after[user.id], strict=True)]
    changed = [old != new for old, new in zip(before[learner.id], after[learner.id], strict=True)]
    return Isolation(
        learner.id,
        tuple(user.id for user in watched),
        len(pairs),
        sum(old != new for old, new in pairs),
        # The digest of the memory and, of the scores, at least one.
        has_learner_changed=changed[0] and any(changed[1:]),
    )


async def _state(setting: Setting, user: OfficeUser) -> list[str | float]:
    """Returns the digest of a user's memory, then the exact scores that it gives."""
    exported = await setting.client.export(key_of(user))
    return [
        exported.snapshot.digest if exported.snapshot else "",
        *(under for under, _ in await _scores(setting, user)),
    ]


async def forget_one(setting: Setting) -> Forgetting:
    """Forgets the last user, and compares that user's scores with the bare core's before and after."""
    user = setting.plan.users[-1]
    setting.screen.say(f"{user.name} wants to be forgotten")
    before = await _scores(setting, user)
    erasure = await setting.client.forget(key_of(user))
    after = await _scores(setting, user)
    kept = await setting.client.export(key_of(user))
    return Forgetting(
        user.id,
        erasure,
        _difference(before),
        _difference(after),
        len(after),
        is_empty=kept.snapshot is None and not kept.parked and not any(record.payload for record in kept.journal),
    )


def _difference(scores: _Scores) -> float:
    return max(abs(user - core) for user, core in scores)


async def _scores(setting: Setting, user: OfficeUser) -> _Scores:
    """Returns the scores of every value for each of the user's first two facts."""

    async def score(index: int) -> _Scores:
        fact = user.facts[index]
        prompt = Message(Role.USER, fact.question), Message(Role.ASSISTANT, fact.answer_stem)
        return await setting.client.score(key_of(user), prompt, [f" {v}" for v in setting.office.values(fact.slot)])

    return [one for scores in await asyncio.gather(score(0), score(1)) for one in scores]
