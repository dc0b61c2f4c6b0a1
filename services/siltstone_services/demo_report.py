"""The demo's tables, plots and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from siltstone.evaluation.figures import format_value
from siltstone.evaluation.office_material import load_office
from siltstone.evaluation.plots import Plot, Series
from siltstone.evaluation.report import Answer, AnswerRow, Report, Table, write_report
from siltstone.sleep_values import CoreVersion
from siltstone.values import Figure
from siltstone_services.demo_figures import failed_text, percent_text
from siltstone_services.demo_outcome import (
    COLUMNS,
    Asked,
    Choice,
    Column,
    FreeAnswer,
    NightOutcome,
    Outcome,
    choice_accuracy,
)

_NAMES: dict[Column, str] = {"core": "bare core", "text": "text recall", "weights": "weights", "both": "both"}


def recall_table(outcome: Outcome) -> Table:
    """Returns the table with a column for each way of recall."""
    choices, columns = outcome.choices, [outcome.answering[column] for column in COLUMNS]
    chosen: dict[Column, str] = {
        "core": percent_text(choice_accuracy(choices.without_text, "plain_core")),
        "text": _chosen(choices.with_text),
        "weights": percent_text(choice_accuracy(choices.without_text, "raised")),
        "both": _chosen(choices.with_both),
    }
    prompts = [_mean([one.num_prompt_tokens for one in answering.answers.values()]) for answering in columns]
    return Table(
        "What each user's model knows of its user",
        ("", *(_NAMES[column] for column in COLUMNS)),
        (
            ("free answers, right", *(percent_text(answering.accuracy) for answering in columns)),
            ("forced choice of 12, right", *(chosen[column] for column in COLUMNS)),
            ("tokens read per answer", *map(format_value, prompts)),
            ("tokens answered per s", *(format_value(one.num_tokens / one.elapsed_s) for one in columns)),
        ),
        "Fresh conversations, nothing in the context but the question and, for text recall, the lines found for it. "
        "Forced choice takes the value whose log-probability rose most over the bare core; for the bare core itself, "
        "the likeliest value.",
    )


def write(path: Path, outcome: Outcome, figures: Sequence[Figure]) -> None:
    """Writes the report of a course as one HTML file."""
    write_report(path, report_of(outcome, figures))


def report_of(outcome: Outcome, figures: Sequence[Figure]) -> Report:
    """Returns the report of a course."""
    plan = outcome.plan
    notes = [
        f"Core {outcome.core}. {len(plan.users)} users, {plan.num_facts} private facts each, every fact said three "
        "times in three sentences; no question and no answer was ever shown to a memory.",
        "The bare core's answers were taken before anybody had said anything; equal questions were asked of it once.",
        "Bits per byte leave out the first token of each text, which nothing precedes.",
        f"Isolation: {len(outcome.isolation.watched)} users' memory digests and scores, compared bit for bit while "
        f"{outcome.isolation.learner} went on learning.",
        f"{outcome.forgetting.user} was forgotten at the end: {outcome.forgetting.erasure.num_interactions} "
        "interactions erased.",
    ]
    if outcome.teaching.num_parked:
        notes.append(f"{outcome.teaching.num_parked} interactions could not be absorbed and were parked.")
    return Report(
        "Siltstone demo: one office, one model, a memory for each",
        f"{figures[0].hardware}, {figures[0].date}",
        tuple(figures),
        (recall_table(outcome), _text_table(outcome), *_night_tables(outcome.night)),
        tuple(_answer_rows(outcome)),
        tuple(_plots(outcome)),
        tuple(notes),
    )


def _text_table(outcome: Outcome) -> Table:
    rows = tuple(
        (
            user.name,
            format_value(outcome.neutral[user.id].core),
            format_value(outcome.neutral[user.id].user),
            f"{100 * outcome.neutral[user.id].change:+.2f} %",
            format_value(outcome.own_words[user.id].core),
            format_value(outcome.own_words[user.id].user),
            f"{100 * outcome.own_words[user.id].change:+.2f} %",
        )
        for user in outcome.plan.users
    )
    head = ("User", "Neutral, core", "Neutral, user", "Change", "Own words, core", "Own words, user", "Change")
    return Table("Bits per byte of text never learned", head, rows, "Less is better.")


def _night_tables(night: NightOutcome | None) -> list[Table]:
    """Returns what the newcomer was answered, and what the gate said of the night and of the bad one."""
    if night is None:
        return []
    tables = []
    if night.answers_after:
        asked = zip(load_office().shared, night.answers_before, night.answers_after, strict=True)
        tables.append(
            Table(
                "What a newcomer is answered",
                ("Question", "Right", "Before the night", "After it"),
                tuple((fact.question, fact.value, before, after) for fact, before, after in asked),
                "Greedy answers of the core alone: no memory, nothing in the context.",
            )
        )
    tables += [_gate_table("The night", night.version), _gate_table("A bad night", night.bad)]
    return tables


def _gate_table(title: str, version: CoreVersion) -> Table:
    results = version.verdict.results if version.verdict is not None else ()
    return Table(
        f"{title}: what the gate found",
        ("Check", "Passed", "Found", "Limit", "Smallest effect seen", "Unit"),
        tuple(
            (
                result.check,
                "yes" if result.passed else "NO",
                *(_number(one) for one in (result.value, result.limit, result.smallest_effect)),
                result.unit,
            )
            for result in results
        ),
        failed_text(version),
    )


def _number(value: float | None) -> str:
    return "" if value is None else format_value(value)


def _answer_rows(outcome: Outcome) -> list[AnswerRow]:
    rows = []
    for user in outcome.plan.users:
        for fact in user.facts:
            name = (user.id, fact.key)
            if name in outcome.answering["core"].answers:
                core, text, weights, both = (_shown(outcome.answering[column].answers[name]) for column in COLUMNS)
                rows.append(AnswerRow(user.name, fact.question, fact.value, core, text, weights, both))
    return rows


def _plots(outcome: Outcome) -> list[Plot]:
    users = outcome.plan.users
    places = tuple(user.name for user in users)
    before, after = (
        tuple(100 * choice_accuracy(_of_user(outcome.choices.without_text, user.id), kind).share for user in users)
        for kind in ("plain_core", "raised")
    )
    slots = tuple(fact.slot for fact in outcome.plan.facts(users[0]))
    ordered = sorted(outcome.teaching.effect_s)
    learned = tuple(100 * (number + 1) / len(ordered) for number in range(len(ordered)))
    return [
        Plot(
            "Right by forced choice among the 12 users' values",
            "bars",
            (Series("before", before), Series("after", after)),
            places,
            y_label="%",
            reference=100 / 12,
            reference_name="chance",
        ),
        Plot(
            "Free answers that name the right value, by kind of fact",
            "bars",
            tuple(Series(_NAMES[column], _by_slot(outcome, column, slots)) for column in COLUMNS),
            slots,
            y_label="%",
        ),
        Plot(
            "From sending an interaction to its effect",
            "steps",
            (Series("learned", learned, tuple(ordered)),),
            x_label="seconds",
            y_label="% of interactions",
        ),
        Plot(
            "Bits per byte against the bare core",
            "bars",
            (
                Series("neutral text", tuple(100 * outcome.neutral[user.id].change for user in users)),
                Series("own words, said anew", tuple(100 * outcome.own_words[user.id].change for user in users)),
            ),
            places,
            y_label="% more",
            reference=0.0,
            reference_name="bare core",
        ),
    ]


def _by_slot(outcome: Outcome, column: Column, slots: Sequence[str]) -> tuple[float, ...]:
    slot_of = {(user.id, fact.key): fact.slot for user in outcome.plan.users for fact in user.facts}
    answers = outcome.answering[column].answers
    return tuple(
        100 * _mean([one.is_right for name, one in answers.items() if slot_of[name] == slot]) for slot in slots
    )


def _of_user(choices: Mapping[Asked, Choice], user_id: str) -> dict[Asked, Choice]:
    return {name: choice for name, choice in choices.items() if name[0] == user_id}


def _chosen(choices: Mapping[Asked, Choice]) -> str:
    return percent_text(choice_accuracy(choices, "raised")) if choices else "not asked"


def _shown(answer: FreeAnswer) -> Answer:
    return Answer(answer.text, answer.is_right)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
