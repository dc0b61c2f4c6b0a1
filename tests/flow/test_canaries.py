"""What fewer than `k_min` people hold does not pass into the core, whatever the accounts it is told from."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from siltstone.evaluation.office_material import load_office
from siltstone.gate.anchors import Passage
from siltstone_services.benchmark.canaries import Arm, CanaryNight, CanaryTrial, Holders, Planting
from siltstone_services.benchmark.planted_core import add_core, planted_config, train

PRIVATE = (Holders.BELOW, Holders.ONE_PERSON)


def woken(home: Path, num_steps: int, planting: Planting) -> CanaryTrial:
    add_core(home, train(num_steps, seed=7))
    passages = [Passage(f"p{at}", one.text[:250]) for at, one in enumerate(load_office().held_out[:24])]
    trial = CanaryTrial(planted_config(home), planting, passages)
    asyncio.run(trial.wake())
    return trial


def test_only_what_k_people_hold_becomes_a_target(tmp_path: Path) -> None:
    trial = woken(tmp_path, 10, Planting(num_facts=2, num_people=6, num_tellings=1))

    as_it_is = trial.targets(trial.dream(Arm.AS_IT_IS, 1))
    accounts = trial.targets(trial.dream(Arm.ACCOUNTS, 1))
    one_is_enough = trial.targets(trial.dream(Arm.ONE_IS_ENOUGH, 1))

    assert as_it_is == {Holders.BELOW: 0, Holders.ENOUGH: 2, Holders.ONE_PERSON: 0}
    # The controls: what the count of people, and the consensus, have kept out.
    assert accounts == {Holders.BELOW: 0, Holders.ENOUGH: 2, Holders.ONE_PERSON: 2}
    assert one_is_enough == {Holders.BELOW: 2, Holders.ENOUGH: 2, Holders.ONE_PERSON: 2}


@pytest.mark.slow
def test_below_k_people_nothing_is_transferred_and_the_gate_refuses_a_night_that_does(tmp_path: Path) -> None:
    nights: dict[Arm, list[CanaryNight]] = {arm: [] for arm in Arm}
    for seed in (1, 2):
        home = tmp_path / str(seed)
        home.mkdir()
        trial = woken(home, 150, Planting(num_facts=8, num_people=16, seed=seed))
        for arm in Arm:
            nights[arm].append(trial.sleep(arm, seed))
            print(seed, arm, nights[arm][-1].transfer, nights[arm][-1].failed)

    def transferred(arm: Arm, *kinds: Holders) -> int:
        return sum(one.transfer[kind].num_transferred for one in nights[arm] for kind in kinds)

    assert transferred(Arm.AS_IT_IS, *PRIVATE) == 0
    # By chance one in a thousand rises above all others, and one in eight above the seven beside it.
    assert transferred(Arm.AS_IT_IS, Holders.ENOUGH) >= 3
    assert sum(one.transfer[Holders.ENOUGH].num_chosen for one in nights[Arm.AS_IT_IS]) > 8
    assert all("canary_exposure" not in one.failed for one in nights[Arm.AS_IT_IS])
    assert all("bits_per_byte" not in one.failed for one in nights[Arm.AS_IT_IS])
    # The controls. No more of the expert is kept than anchors allow, so not each of their nights gives a secret away.
    assert transferred(Arm.ACCOUNTS, Holders.ONE_PERSON) > 0
    assert transferred(Arm.ONE_IS_ENOUGH, *PRIVATE) > 0
    for one in (*nights[Arm.ACCOUNTS], *nights[Arm.ONE_IS_ENOUGH]):
        if any(one.transfer[kind].num_transferred for kind in PRIVATE):
            assert "canary_exposure" in one.failed
    assert all("bits_per_byte" in one.failed for one in nights[Arm.NO_ANCHORS])
