"""The course of the demo: ask the bare core, teach every user's memory, then ask again with nothing in the context."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from siltstone_services.demo_outcome import Answering, Column, NightOutcome, Outcome
from siltstone_services.demo_probes import forget_one, isolate, read_held_out
from siltstone_services.demo_questions import ask_freely, choose_all
from siltstone_services.demo_setting import Setting, at_once, key_of
from siltstone_services.demo_teaching import teach

SpendNight = Callable[[Setting], Awaitable[NightOutcome]]


async def run_course(setting: Setting, night: SpendNight | None = None) -> Outcome:
    """Runs the whole course.

    1. Ask the bare core. 2. Let everybody talk. 3. Ask again, under each way of recall. 4. Force choices.
    5. Read held-out text. 6. Let one user learn more, and watch the others. 7. Spend the night, if there is to be one.
    8. Forget one user.
    """
    say, answering = setting.screen.say, dict[Column, Answering]()
    say("before: the bare core is asked what only the users know")
    answering["core"] = await ask_freely(setting, "core")
    say("everybody tells the model about themselves, all at once")
    teaching = await teach(setting)
    say("after: the same questions, each in a fresh conversation with nothing in the context")
    columns: tuple[Column, ...] = ("weights", "text", "both")
    for column in columns:
        answering[column] = await ask_freely(setting, column)
    choices = await choose_all(setting, answering["text"].answers)
    neutral, own_words = await read_held_out(setting)
    users = setting.plan.users
    cards = await at_once(users, lambda user: setting.client.memory(key_of(user)), len(users))
    isolation = await isolate(setting)
    night_outcome = await night(setting) if night is not None else None
    forgetting = await forget_one(setting)
    return Outcome(
        plan=setting.plan,
        core=cards[0].core,
        teaching=teaching,
        answering=answering,
        choices=choices,
        neutral=neutral,
        own_words=own_words,
        isolation=isolation,
        forgetting=forgetting,
        memory_bytes=max(card.size_bytes for card in cards),
        night=night_outcome,
    )
