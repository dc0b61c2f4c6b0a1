"""The demo's night where the gate accepts it: a newcomer asks, everybody is carried over, and it is rolled back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from tiny_home import add_tiny_core, tiny_config
from tiny_night import SETTINGS, exam

from siltstone.adapters.system_clock import SystemClock
from siltstone.evaluation.office_material import load_office
from siltstone.sleep_values import VersionState
from siltstone_services.client import SiltstoneClient
from siltstone_services.demo import full_plan
from siltstone_services.demo_night import spend_night
from siltstone_services.demo_outcome import CoursePlan, NightOutcome
from siltstone_services.demo_screen import DemoScreen
from siltstone_services.demo_setting import Setting
from siltstone_services.demo_teaching import teach
from siltstone_services.gateway import Gateway
from siltstone_services.wiring import embedded_host


async def spend(home: Path, plan: CoursePlan) -> NightOutcome:
    # Whatever the core becomes, everybody can follow: what is shown here is the way there and back.
    carried = {"sleep.rebase.max_lost_share": 10.0, "sleep.private.num_steps": 0, "sleep.look_every_s": 0.05}
    config = tiny_config(home, {**SETTINGS, **carried})
    clock, quiet = SystemClock(), Console(quiet=True)
    async with (
        embedded_host(config) as host,
        Gateway(host, replace(config.gateway, host="127.0.0.1", port=0), config.admission, clock) as gateway,
        SiltstoneClient(gateway.address) as client,
    ):
        setting = Setting(client, load_office(), plan, clock, DemoScreen(quiet, quiet, clock))
        await teach(setting)
        return await spend_night(setting, config, exam())


def test_an_accepted_night_serves_carries_everybody_over_and_is_rolled_back(tmp_path: Path) -> None:
    add_tiny_core(tmp_path)
    office = load_office()
    plan = replace(full_plan(office), users=office.users[:5], num_facts=1, max_answer_tokens=2)

    night = asyncio.run(spend(tmp_path, plan))

    assert night.version.verdict is not None
    assert night.version.verdict.accepted
    assert night.num_carried_over == len(plan.users)
    assert night.shared is not None
    assert night.shared.num_asked == len(office.shared)
    assert night.recalled_after is not None
    assert night.rollback_s is not None
    # Back on the first core, the newcomer is answered as at first.
    assert night.difference_after_rollback == 0.0
    # The night that is to be bad has only the examiner's word for it here; it is over the same dreams.
    assert night.bad.state is VersionState.ACCEPTED
    assert night.bad.digest != night.version.digest
    assert night.bad.lineage.sleep_id == night.version.lineage.sleep_id
