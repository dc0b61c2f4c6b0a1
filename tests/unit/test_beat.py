"""What nodes say of themselves, together."""

from __future__ import annotations

from siltstone.placement.coordinator import Claim
from siltstone_services.beat import Beat, leading_core


def beat(core: str) -> Beat:
    return Beat("i", Claim(0, {}), {}, (), core, 0, 0, 0, 0, 0, 0, 0, 0.0, 1, 0, 0)


def test_a_core_leads_when_it_does_everywhere() -> None:
    assert leading_core([beat("old"), beat("old")]) == "old"
    assert leading_core([beat("new"), beat("old")]) == ""
    assert leading_core([beat("new"), beat("new"), beat("new")]) == "new"
    assert leading_core([]) == ""
