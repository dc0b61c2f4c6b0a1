"""What a request must be before it reaches a shard. Raises where the stages return refusals."""

from __future__ import annotations

import re
from collections.abc import Sequence

from siltstone.config import GatewayConfig
from siltstone.errors import InvalidInput
from siltstone.journal.admit import AdmissionLimits, Refusal, check
from siltstone.values import (
    Consent,
    GenerateRequest,
    Interaction,
    InteractionKind,
    Message,
    Role,
    Sampling,
    UserKey,
    is_valid_id,
)
from siltstone_services.status import Refused

_REFUSAL = re.compile(r"(?P<field>\S+): expected (?P<expected>.*), found (?P<found>.*)", re.DOTALL)


def check_owner(owner: UserKey) -> None:
    """Raises InvalidInput for a tenant or user that cannot be one."""
    _check_id("owner.tenant", owner.tenant)
    _check_id("owner.user", owner.user)


def check_interaction(interaction: Interaction, limits: AdmissionLimits) -> None:
    """Raises Refused for an interaction that may not be absorbed."""
    refusal = check(interaction, limits)
    if refusal is not None:
        raise refused(refusal)


def check_generate(request: GenerateRequest, limits: AdmissionLimits, config: GatewayConfig) -> None:
    """Raises InvalidInput for a request that cannot be answered."""
    check_owner(request.owner)
    if request.interaction_id or request.consent.learn:
        _check_id("interaction_id", request.interaction_id)
    _check_conversation(request.owner, request.messages, limits)
    if request.messages[-1].role is Role.ASSISTANT:
        raise InvalidInput("messages", "a user message last", "an assistant message")
    _check_sampling(request.sampling, config)


def check_score(
    owner: UserKey, prompt: Sequence[Message], answers: Sequence[str], limits: AdmissionLimits, config: GatewayConfig
) -> None:
    """Raises InvalidInput for answers that cannot be scored. Without a prompt they are plain texts."""
    check_owner(owner)
    if prompt:
        _check_conversation(owner, prompt, limits, "prompt")
    if not 1 <= len(answers) <= config.max_scored_answers:
        raise InvalidInput("answers", f"1 to {config.max_scored_answers}", str(len(answers)))
    for index, answer in enumerate(answers):
        if not answer:
            raise InvalidInput(f"answers[{index}]", "text", "none")
    num_bytes = sum(len(answer.encode(errors="surrogatepass")) for answer in answers)
    if num_bytes > limits.max_text_bytes:
        raise InvalidInput("answers", f"at most {limits.max_text_bytes} bytes", f"{num_bytes} bytes")


def refused(refusal: Refusal) -> Refused:
    """Returns the error that tells a refusal to a caller."""
    parts = _REFUSAL.fullmatch(refusal.detail)
    if parts is None:
        return Refused("interaction", "one that is admitted", refusal.detail, refusal.reason)
    return Refused(parts["field"], parts["expected"], parts["found"], refusal.reason)


def within(error: InvalidInput, field: str) -> InvalidInput:
    """Returns the same error about a part of `field`."""
    if isinstance(error, Refused):
        return Refused(f"{field}.{error.field}", error.expected, error.found, error.reason)
    return InvalidInput(f"{field}.{error.field}", error.expected, error.found)


def renamed(error: InvalidInput, old: str, new: str) -> InvalidInput:
    """Returns the same error about a field that the caller knows by another name."""
    field = new + error.field.removeprefix(old) if error.field.startswith(old) else error.field
    if isinstance(error, Refused):
        return Refused(field, error.expected, error.found, error.reason)
    return InvalidInput(field, error.expected, error.found)


def _check_conversation(
    owner: UserKey, messages: Sequence[Message], limits: AdmissionLimits, field: str = "messages"
) -> None:
    """Holds a conversation to be answered to what one to be absorbed is held to, but for the consent."""
    as_if = Interaction("asked", owner, InteractionKind.CONVERSATION, 0, tuple(messages), consent=Consent(learn=True))
    try:
        check_interaction(as_if, limits)
    except InvalidInput as error:
        raise renamed(error, "messages", field) from error


def _check_sampling(sampling: Sampling, config: GatewayConfig) -> None:
    if not 1 <= sampling.max_tokens <= config.max_answer_tokens:
        raise InvalidInput("sampling.max_tokens", f"1 to {config.max_answer_tokens}", str(sampling.max_tokens))
    if not 0 <= sampling.temperature <= 10:
        raise InvalidInput("sampling.temperature", "0 to 10", str(sampling.temperature))
    if not 0 < sampling.top_p <= 1:
        raise InvalidInput("sampling.top_p", "more than 0, up to 1", str(sampling.top_p))


def _check_id(field: str, text: str) -> None:
    if not is_valid_id(text):
        found = f"{len(text)} characters, starting {text[:16]!r}" if text else "nothing"
        raise InvalidInput(field, "1 to 128 plain characters, no slash", found)
