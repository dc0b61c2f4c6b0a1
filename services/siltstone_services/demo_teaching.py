"""The part of the demo's course in which everybody talks about themselves."""

from __future__ import annotations

import asyncio
from typing import Final

from siltstone.evaluation.office_material import NUM_STATEMENTS, OfficeUser
from siltstone.values import Consent, Interaction, InteractionKind, Message, Role, ShardStatus
from siltstone_services.demo_outcome import Teaching
from siltstone_services.demo_setting import Setting, at_once, key_of

_STATUS_EVERY_S: Final = 0.5
_SAID_AT_ONCE: Final = 8
"""Things a user says in one go, before waiting until they are learned."""


async def teach(setting: Setting) -> Teaching:
    """Lets all users talk at once; each says a few things more when the last ones are in the memory."""
    users, clock, client = setting.plan.users, setting.clock, setting.client
    said = {user.id: statements_of(setting, user) for user in users}
    effect_s: list[float] = []
    before = await client.status()
    started_s = clock.monotonic_s()

    async def talk(user: OfficeUser) -> None:
        statements = said[user.id]
        for start in range(0, len(statements), _SAID_AT_ONCE):
            group = [told(setting, user, name, text) for name, text in statements[start : start + _SAID_AT_ONCE]]
            sent_s = clock.monotonic_s()
            await client.record(group, wait_absorbed=True)
            for _ in group:
                effect_s.append(clock.monotonic_s() - sent_s)
                setting.screen.learned(user.id, effect_s[-1])

    with setting.screen.teaching({name: len(statements) for name, statements in said.items()}):
        looking = asyncio.create_task(_look(setting, before, started_s))
        try:
            await at_once(users, talk, len(users))
            elapsed_s = clock.monotonic_s() - started_s
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
    after = await client.status()
    num_tokens = after.absorbed_tokens - before.absorbed_tokens
    return Teaching(len(effect_s), num_tokens, elapsed_s, tuple(effect_s), after.num_parked - before.num_parked)


def statements_of(setting: Setting, user: OfficeUser) -> list[tuple[str, str]]:
    """Returns what a user says, each statement named: every fact once in a round, with shared ones after each round."""
    shared = [
        (f"shared-{fact.key}", statement.text)
        for fact in (setting.office.shared if setting.plan.has_shared else ())
        for statement in fact.statements
        if statement.user == user.id
    ]
    said: list[tuple[str, str]] = []
    for mention in range(NUM_STATEMENTS):
        said += [(f"{fact.key}-{mention}", fact.statements[mention]) for fact in setting.plan.facts(user)]
        said += shared[mention::NUM_STATEMENTS]
    return said


def told(setting: Setting, user: OfficeUser, name: str, text: str) -> Interaction:
    """Returns one message of a user, agreed to be learned and shared."""
    message, now_ms = Message(Role.USER, text), setting.clock.now_ms()
    consent = Consent(learn=True, share=True)
    return Interaction(name, key_of(user), InteractionKind.CONVERSATION, now_ms, (message,), consent=consent)


async def _look(setting: Setting, before: ShardStatus, started_s: float) -> None:
    while True:
        status = await setting.client.status()
        num_tokens = status.absorbed_tokens - before.absorbed_tokens
        elapsed_s = setting.clock.monotonic_s() - started_s
        setting.screen.look(num_tokens / elapsed_s if elapsed_s else 0.0, status.lag_interactions)
        await asyncio.sleep(_STATUS_EVERY_S)
