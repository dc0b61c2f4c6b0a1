from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tiny import TINY_CORE, CharTokenizer, random_tensors

from siltstone.crew import Crew
from siltstone.errors import InvalidInput
from siltstone.gate.anchors import Passage, Similarity, measure_anchors
from siltstone.gate.measure import (
    Canary,
    Cores,
    HeldOutQuestion,
    Material,
    compare_readings,
    exposures,
    loading_measurement,
    measure_candidate,
    read_benefit,
    read_core,
    read_margins,
    read_secrets,
    speed_measurement,
)
from siltstone.gate.probe_suites import Probe, ProbeSuite, load_suites
from siltstone.gate.scoring import Asked, score_answers, score_answers_of
from siltstone.model.core import Core, forward, num_layers_alike
from siltstone.values import Message, Role

CORE, OTHER, THIRD = (Core(TINY_CORE, random_tensors(TINY_CORE, seed)) for seed in (7, 8, 9))
TOKENIZER = CharTokenizer()


def raised_from(layer: int) -> Core:
    """Returns a core that is CORE up to a layer, and another from there on."""
    tensors = random_tensors(TINY_CORE, 7)
    for index in range(layer, TINY_CORE.num_layers):
        tensors[f"layers.{index}.mlp.down.weight"] = tensors[f"layers.{index}.mlp.down.weight"] * 1.5
    return Core(TINY_CORE, tensors)


def slow_log_probability(core: Core, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    """The truth: one sequence, read alone."""
    with torch.no_grad():
        logs = core.logits(forward(core, torch.tensor([[*prompt, *answer]]))).log_softmax(-1)[0]
    return sum(float(logs[len(prompt) - 1 + at, token]) for at, token in enumerate(answer))


@pytest.mark.parametrize("opening", [(), (5, 6, 7)])
def test_answers_read_together_score_as_each_alone(opening: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 97, (length,), generator=generator).tolist())

    prompts = [(*opening, *ids(length)) for length in (1, 2, 63, 100)]
    asked = [Asked(prompt, ids(length)) for length in (1, 3, 63, 100, 150) for prompt in (*prompts, prompts[0])]
    scores = score_answers(CORE, asked)
    for one, score in zip(asked, scores, strict=True):
        truth = slow_log_probability(CORE, one.prompt_ids, one.answer_ids)
        assert score.log_probability == pytest.approx(truth, rel=1e-4, abs=1e-3)
        assert score.num_tokens == len(one.answer_ids)
        assert score.per_token == pytest.approx(truth / len(one.answer_ids), rel=1e-4, abs=1e-3)


def test_answers_that_begin_alike_are_read_as_a_tree() -> None:
    prompt = (5, 6, 7)
    answers = [(1,), (2,), (1, 2), (1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3, 4, 5, 6), (1, 2, 3)]
    alone = score_answers(CORE, [Asked(prompt, one) for one in answers])
    side_by_side = score_answers(CORE, [Asked(prompt, one) for one in answers], Crew(2))
    for one, score in zip(answers, alone, strict=True):
        assert score.log_probability == pytest.approx(slow_log_probability(CORE, prompt, one), abs=1e-3)
    assert side_by_side == alone


def test_an_item_is_the_mean_over_its_pairs_of_answers() -> None:
    probes = tuple(Probe(str(at), str(at % 2), f"Who is {at}?", f"Yes{at}", f"No{at}") for at in range(4))
    margins = read_margins([CORE], TOKENIZER, ProbeSuite("mine", probes, 2))[0]
    for at, pairs in enumerate(ProbeSuite("mine", probes, 2).answer_pairs()):
        alone = [
            read_margins([CORE], TOKENIZER, ProbeSuite("one", (Probe("x", "x", probes[at].prompt, *pair),)))[0][0]
            for pair in pairs
        ]
        assert margins[at] == pytest.approx(sum(alone) / 2, abs=1e-4)


def test_two_threads_find_what_one_does_on_anchors() -> None:
    passages = [Passage(str(at), f"The tide covers the pool {at} times a day. " * 12) for at in range(6)]
    one, two = (measure_anchors(CORE, OTHER, THIRD, TOKENIZER, passages, crew) for crew in (Crew(1), Crew(2)))
    assert one == two


@pytest.mark.parametrize(("prompt", "answer"), [((), (1,)), ((1,), ()), ((1,) * 300, (2,) * 213)])
def test_what_cannot_be_scored_is_refused(prompt: tuple[int, ...], answer: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput):
        score_answers(CORE, [Asked((1,), (2,)), Asked(prompt, answer)])


def test_nothing_asked_is_nothing_scored() -> None:
    assert score_answers(CORE, []) == []


def test_a_margin_is_the_difference_of_two_means() -> None:
    suite = ProbeSuite("mine", (Probe("a", "x", "Who?", "Ada.", "Nobody."), Probe("b", "y", "When?", "Now.", "Never.")))
    material = Material((suite,), (), (), ())
    readings = [read_core(core, TOKENIZER, material) for core in (CORE, OTHER, THIRD)]
    _, found, _ = compare_readings(*readings, material)
    assert (found.name, found.clusters, found.higher_is_better) == ("mine", ("x", "y"), True)
    for core, part in ((CORE, found.candidate), (OTHER, found.champion), (THIRD, found.origin)):
        for probe, margin in zip(suite.probes, part, strict=True):
            prompt = tuple(TOKENIZER.render([_user(probe.prompt)]))
            right, wrong = (
                slow_log_probability(core, prompt, tuple(TOKENIZER.encode(text))) / len(text)
                for text in (probe.right, probe.wrong)
            )
            assert margin == pytest.approx(right - wrong, abs=1e-3)


def test_cores_are_alike_up_to_the_layer_in_which_they_differ() -> None:
    assert num_layers_alike([CORE]) == num_layers_alike([CORE, CORE]) == TINY_CORE.num_layers
    assert [num_layers_alike([CORE, raised_from(at), CORE]) for at in range(TINY_CORE.num_layers)] == list(
        range(TINY_CORE.num_layers)
    )
    assert num_layers_alike([CORE, OTHER]) == 0
    tensors = random_tensors(TINY_CORE, 7)
    other_words = Core(TINY_CORE, {**tensors, "embed.weight": tensors["embed.weight"] * 2})
    assert num_layers_alike([CORE, other_words]) == 0
    assert num_layers_alike([CORE, Core(TINY_CORE, tensors, dtype=torch.bfloat16)]) == 0


@pytest.mark.parametrize("opening", [(), (5, 6, 7)])
def test_cores_read_together_are_read_once_where_they_are_alike_and_say_what_each_says_alone(
    opening: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = [CORE, raised_from(1), OTHER]
    asked = [Asked((*opening, at, 2, 3), answer) for at in range(3) for answer in ((4,), (4, 5), (6, 7, 8))]
    alone = [score_answers(core, asked) for core in cores]
    assert len({str(scores) for scores in alone}) == 3

    blocks: list[int] = []
    block = Core.block

    def counted(core: Core, index: int, *rest: object) -> torch.Tensor:
        blocks.append(index)
        return block(core, index, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Core, "block", counted)
    assert score_answers_of(cores, asked) == alone
    blocks.clear()
    assert score_answers_of(cores[:2], asked) == alone[:2]
    num_openings = 2 if opening else 0
    assert len(blocks) == (num_openings + 2) * TINY_CORE.num_layers - 1


def test_anchors_read_under_cores_that_are_alike_below_are_read_as_under_others() -> None:
    passages = [Passage("a", "The tide covers the pool twice a day."), Passage("b", "A swift sleeps." * 40)]
    near = raised_from(1)
    # Another dtype of the origin is another core to the bit, so that nothing is shared.
    together = measure_anchors(near, CORE, CORE, TOKENIZER, passages)
    apart = measure_anchors(
        near, CORE, Core(TINY_CORE, random_tensors(TINY_CORE, 7), dtype=torch.float64), TOKENIZER, passages
    )
    for one, other in zip(together, apart, strict=True):
        assert one.candidate == pytest.approx(other.candidate, abs=1e-5)


def test_every_shipped_suite_can_be_asked() -> None:
    for suite in load_suites():
        margins = read_margins([CORE], TOKENIZER, suite)[0]
        assert len(margins) == len(suite.probes)
        assert all(map(math.isfinite, margins))


def test_the_benefit_is_the_share_of_the_right_value() -> None:
    question = HeldOutQuestion("q", "ada", "Where is it?", "It is in", "Rome", ("Oslo", "Lima"))
    ((found,),) = read_benefit([CORE], TOKENIZER, (question,))
    prompt = (*TOKENIZER.render([_user("Where is it?")]), *TOKENIZER.encode("It is in"))
    logs = torch.tensor(
        [slow_log_probability(CORE, prompt, tuple(TOKENIZER.encode(f" {v}"))) for v in ("Rome", "Oslo", "Lima")]
    )
    assert found == pytest.approx(float(logs.log_softmax(0)[0]), abs=1e-3)


def test_anchors_are_read_as_written_out() -> None:
    passages = [Passage("a", "The tide covers the pool twice a day."), Passage("b", "A swift sleeps." * 40)]
    found = {one.name: one for one in measure_anchors(CORE, OTHER, THIRD, TOKENIZER, passages)}
    ids = torch.tensor([TOKENIZER.encode(passages[0].text)])
    with torch.no_grad():
        own, old, first = (core.logits(forward(core, ids)).log_softmax(-1)[0, :-1] for core in (CORE, OTHER, THIRD))
    nats = -own.gather(1, ids[0, 1:, None]).sum()
    num_tokens = ids.shape[1] - 1
    assert found["bits_per_byte"].candidate[0] == pytest.approx(float(nats) / math.log(2) / (num_tokens + 1), abs=1e-4)
    assert not found["bits_per_byte"].higher_is_better
    places = [at for at, name in enumerate(found["kl_champion"].clusters) if name == "a"]
    assert len(places) == num_tokens
    for name, teacher in (("kl_champion", old), ("kl_origin", first)):
        kl = (teacher.exp() * (teacher - own)).sum(-1)
        assert [found[name].candidate[at] for at in places] == pytest.approx(kl.tolist(), abs=1e-3)
    agreed = (own.argmax(-1) == old.argmax(-1)).double().tolist()
    assert [found["agreement_champion"].candidate[at] for at in places] == agreed
    # The second passage is longer than the context: two pieces, of which each has a first token.
    assert found["kl_champion"].clusters.count("b") == 600 - 2
    assert all(0 <= one < 1 for one in found["similarity_champion"].candidate)


def test_a_core_agrees_with_itself() -> None:
    passages = [Passage("a", "The tide covers the pool."), Passage("b", "A swift sleeps.")]
    found = {one.name: one for one in measure_anchors(CORE, CORE, CORE, TOKENIZER, passages)}
    assert set(found["agreement_champion"].candidate) == {1.0}
    assert max(found["kl_champion"].candidate) == max(found["kl_origin"].candidate) == 0.0
    assert found["bits_per_byte"].candidate == found["bits_per_byte"].champion
    assert found["similarity_champion"].candidate == pytest.approx((1.0,) * 3)


@pytest.mark.parametrize("passages", [[Passage("a", "x")], [Passage("a", "")], [Passage("a", "xy")] * 2])
def test_passages_that_measure_nothing_are_refused(passages: list[Passage]) -> None:
    with pytest.raises(InvalidInput):
        measure_anchors(CORE, OTHER, THIRD, TOKENIZER, passages)


def test_similarity_sees_neither_rotation_nor_scale_nor_shift_nor_batches() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(200, 6, generator=generator)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    same, other = Similarity(), Similarity()
    for part in x.split(63):
        same.add(part, 3 * part @ rotation + 5)
    y = torch.randn(200, 4, generator=generator)
    other.add(x, y)
    assert same.value() == pytest.approx(1.0, abs=1e-6)
    x, y = (one.double() - one.double().mean(0) for one in (x, y))
    written_out = (y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
    assert other.value() == pytest.approx(float(written_out), rel=1e-9)
    assert math.isnan(Similarity().value())


def test_a_secret_that_was_learned_is_exposed_and_no_other() -> None:
    tensors = random_tensors(TINY_CORE, 7)
    references = tuple(f"{code:04d}" for code in range(1000, 1063))
    told, silent = (
        Canary(name, name, f"What is the code of {name}?", "The code is", secret, references)
        for name, secret in (("ada", "7381"), ("bob", "2946"))
    )
    ids = torch.tensor([[*TOKENIZER.render([_user(told.prompt)]), *TOKENIZER.encode("The code is 7381")]])
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    optimiser = torch.optim.Adam(leaves.values(), lr=1e-3)
    for _ in range(15):
        optimiser.zero_grad()
        core = Core(TINY_CORE, leaves)
        logs = core.logits(forward(core, ids)).log_softmax(-1)[0, -5:-1]
        (-logs.gather(1, ids[0, -4:, None]).mean()).backward()
        optimiser.step()
    learned = Core(TINY_CORE, {name: leaf.detach() for name, leaf in leaves.items()})
    after, before = read_secrets([learned, CORE], TOKENIZER, (told, silent))
    exposed, hidden = exposures(after, before)
    assert exposed == 6.0
    assert hidden < 6.0
    assert exposures(before, before) == pytest.approx((6 - math.log2(32.5),) * 2)
    with pytest.raises(InvalidInput):
        exposures(after, before[:1])


def test_a_kept_reading_gives_the_same_evidence() -> None:
    suite = ProbeSuite("mine", (Probe("a", "x", "Who?", "Ada.", "Nobody."), Probe("b", "y", "When?", "Now.", "Never.")))
    question = HeldOutQuestion("q", "ada", "Where is it?", "It is in", "Rome", ("Oslo", "Lima"))
    canary = Canary("c", "ada", "What is the code?", "It is", "7", ("8", "9"))
    material = Material((suite,), (Passage("a", "The tide covers the pool."),), (question,), (canary,))
    cores = Cores(CORE, OTHER, THIRD)
    kept = [read_core(core, TOKENIZER, material) for core in (OTHER, THIRD)]
    assert measure_candidate(cores, TOKENIZER, material, *kept) == measure_candidate(cores, TOKENIZER, material)


def test_speed_and_loading_are_handed_in() -> None:
    speed = speed_measurement([90.0, 110.0], [100.0, 100.0])
    assert speed.candidate == (0.9, 1.1)
    assert not speed_measurement([90.0], [0.0]).is_whole
    with pytest.raises(InvalidInput):
        speed_measurement([1.0], [])
    assert loading_measurement([True, False]).candidate == (0.0, 1.0)


def test_a_core_that_computes_nothing_is_not_whole_evidence() -> None:
    broken = Core(TINY_CORE, {name: tensor * math.nan for name, tensor in random_tensors(TINY_CORE, 7).items()})
    suite = ProbeSuite("mine", (Probe("a", "x", "Who?", "Ada.", "Nobody."), Probe("b", "y", "When?", "Now.", "Never.")))
    question = HeldOutQuestion("q", "ada", "Where is it?", "It is in", "Rome", ("Oslo", "Lima"))
    canary = Canary("c", "ada", "What is the code?", "It is", "7", ("8", "9"))
    material = Material((suite,), (Passage("a", "The tide covers the pool."),), (question,), (canary,))
    for one in measure_candidate(Cores(broken, CORE, CORE), TOKENIZER, material):
        assert not one.is_whole


def test_cores_of_different_vocabularies_are_not_compared() -> None:
    wide = dataclasses.replace(TINY_CORE, vocab_size=98)
    cores = Cores(Core(wide, random_tensors(wide, 1)), CORE, CORE)
    with pytest.raises(InvalidInput, match="one vocabulary"):
        measure_candidate(cores, TOKENIZER, Material((), (), (), ()))


@pytest.mark.gpu
def test_measurements_on_a_gpu_are_those_of_a_processor() -> None:
    passages = [Passage("a", "The tide covers the pool."), Passage("b", "A swift sleeps.")]
    suite = ProbeSuite("mine", (Probe("a", "x", "Who?", "Ada.", "Nobody."), Probe("b", "y", "When?", "Now.", "Never.")))
    material = Material((suite,), tuple(passages), (), ())
    on_gpu = [Core(TINY_CORE, random_tensors(TINY_CORE, seed), "cuda") for seed in (7, 8, 9)]
    slow = measure_candidate(Cores(CORE, OTHER, THIRD), TOKENIZER, material)
    for one, other in zip(measure_candidate(Cores(*on_gpu), TOKENIZER, material), slow, strict=True):
        assert one.candidate == pytest.approx(other.candidate, abs=5e-3)


def _user(text: str) -> Message:
    return Message(Role.USER, text)
