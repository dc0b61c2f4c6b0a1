"""Reads a model's Jinja chat template, by rendering it in a sandbox and looking at where the contents land."""

from __future__ import annotations

from typing import NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from siltstone.adapters.tokenizer import ChatFormat
from siltstone.errors import InvalidInput
from siltstone.values import Message, Role

_PROBES = {
    Role.SYSTEM: ("Sentinel system one", "Sentinel system two"),
    Role.USER: ("Sentinel user one", "Sentinel user two"),
    Role.ASSISTANT: ("Sentinel assistant one", "Sentinel assistant two"),
}


class ChatTemplate:
    """A Jinja chat template, rendered as Hugging Face renders it, with nothing of the machine in reach."""

    def __init__(self, template: str, bos: str, eos: str) -> None:
        """Raises: InvalidInput when the template cannot be parsed."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(template)
        except TemplateError as error:
            raise InvalidInput("chat template", "a Jinja template", str(error)) from error
        self._bos, self._eos = bos, eos

    def render(self, messages: list[Message], open_answer: bool = False) -> str:
        """Returns the text of the conversation, with the assistant's turn opened if asked for.

        Raises: InvalidInput when the template refuses the messages.
        """
        turns = [{"role": message.role.value, "content": message.text} for message in messages]
        try:
            return self._template.render(
                messages=turns,
                add_generation_prompt=open_answer,
                bos_token=self._bos,
                eos_token=self._eos,
                tools=None,
                documents=None,
            )
        except (TemplateError, TypeError, ValueError, OverflowError) as error:
            raise InvalidInput("chat template", "a template that renders plain messages", str(error)) from error


def derive_chat_format(template: str, bos: str, eos: str, special_tokens: list[str]) -> ChatFormat:
    """Turns a template into the text before and after each role's content.

    Raises: InvalidInput when the template is not of that form: what was derived is rendered against the template.
    """
    source = ChatTemplate(template, bos, eos)
    system, user, assistant = (Message(role, _PROBES[role][0]) for role in (Role.SYSTEM, Role.USER, Role.ASSISTANT))
    user_again = Message(Role.USER, _PROBES[Role.USER][1])

    asked = source.render([user])
    lead, user_suffix = _cut(asked, user.text)
    assistant_prefix = _after(source.render([user], open_answer=True), asked)
    assistant_suffix = _cut(source.render([user, assistant]), assistant.text)[1]
    between = _cut(_cut(source.render([user, assistant, user_again]), assistant.text)[1], user_again.text)[0]
    user_prefix = _after(between, assistant_suffix)
    lead = _before(lead, user_prefix)
    with_system = source.render([system, user])
    system_lead, rest = _cut(with_system, system.text)
    system_suffix = _before(_cut(rest, user.text)[0], user_prefix)

    opening, default_system = lead, ""
    if lead != system_lead and system_lead and lead.startswith(system_lead):
        default_system = _before(_after(lead, system_lead), system_suffix)
        opening = bos if bos and system_lead.startswith(bos) and not user_prefix.startswith(bos) else ""
    chat = ChatFormat(
        bos=opening,
        turns={
            Role.SYSTEM.value: (_after(system_lead, opening), system_suffix),
            Role.USER.value: (user_prefix, user_suffix),
            Role.ASSISTANT.value: (assistant_prefix, assistant_suffix),
        },
        default_system=default_system,
        stop=_stops(assistant_suffix, eos, special_tokens),
    )
    _prove(chat, source)
    return chat


def _prove(chat: ChatFormat, source: ChatTemplate) -> None:
    """Renders conversations of several forms both ways."""
    for with_system in (False, True):
        for num_exchanges in (1, 2, 3):
            messages = [Message(Role.SYSTEM, "Be brief.")] if with_system else []
            for i in range(num_exchanges):
                messages += [Message(Role.USER, f"Question {i}?"), Message(Role.ASSISTANT, f"Answer {i}.")]
            messages.pop()
            expected, found = source.render(messages, open_answer=True), chat.render_text(messages)
            if expected != found:
                raise InvalidInput("chat template", f"turns that render as {expected!r}", repr(found))


def _stops(assistant_suffix: str, eos: str, special_tokens: list[str]) -> tuple[str, ...]:
    marks = [token for token in special_tokens if token and assistant_suffix.startswith(token)]
    closing = [max(marks, key=len)] if marks else []
    return tuple(dict.fromkeys(closing + ([eos] if eos else [])))


def _cut(text: str, sentinel: str) -> tuple[str, str]:
    if text.count(sentinel) != 1:
        raise InvalidInput("chat template", "each content rendered once", f"{text.count(sentinel)} times")
    before, _, after = text.partition(sentinel)
    return before, after


def _before(text: str, end: str) -> str:
    if not text.endswith(end):
        raise InvalidInput("chat template", f"the same text before each turn of a role, {end!r}", repr(text))
    return text.removesuffix(end)


def _after(text: str, start: str) -> str:
    if not text.startswith(start):
        raise InvalidInput("chat template", f"the same text after each turn of a role, {start!r}", repr(text))
    return text.removeprefix(start)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
