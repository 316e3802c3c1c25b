"""Family totals against sums done by hand."""

import dataclasses

import pytest

from hf_progressive.records.family import FamilyCost
from hf_progressive.records.measurements import Baseline, CurvePoint
from hf_progressive.records.rung import DataUse, RungFlops, RungParameters, RungRecord
from hf_progressive.records.stages import TrunkRecord

POINT = (CurvePoint(flops=0.0, bits_per_byte=2.0),)
FIRST = RungRecord(
    **dict.fromkeys(("flops_to_match", "gap_bits_per_byte", "saving", "eta", "c_parent_over_c_cold", "phi"), None),
    **dict.fromkeys(("max_abs_logit_diff", "max_abs_logit", "cold", "parent"), None),
    index=0,
    name="a",
    config={},
    parameters=RungParameters(total=10, non_embedding=8, scaling=9),
    tokens=100,
    tokens_per_parameter=10.0,
    cold_tokens=100,
    flops=RungFlops(per_token=6.0, train=600.0, fisher=0.0, subspace=0.0),
    bits_per_byte=2.0,
    curve=POINT,
    data=DataUse(source="x", first_block=0, blocks=1, first_epoch=0, repeats_from_token=None),
)


def grown(name, *, train, fisher, subspace, cold=None, to_match=None, eta=None, **more):
    cold_tokens, per_token = more.pop("cold_tokens", 200), more.pop("per_token", 5.0)
    return dataclasses.replace(
        FIRST,
        name=name,
        parent="a",
        flops=RungFlops(per_token=per_token, train=train, fisher=fisher, subspace=subspace, **more),
        cold=None if cold is None else Baseline(bits_per_byte=1.9, flops=cold, curve=POINT),
        flops_to_match=to_match,
        eta=eta,
        cold_tokens=cold_tokens,
    )


def test_four_ways_of_counting():
    second = grown("b", train=500.0, fisher=20.0, subspace=5.0, cold=1000.0, to_match=300.0, eta=7 / 6)
    third = grown("c", train=900.0, fisher=30.0, subspace=10.0, cold=1500.0, to_match=700.0, eta=0.8)
    totals = FamilyCost(rungs=(FIRST, second, third))
    assert totals.all_cold == 600 + 1000 + 1500
    assert totals.inherited_as_trained == 600 + 525 + 940
    assert totals.inherited_to_match == 600 + 525 + 700  # parents as they were trained
    assert totals.last_alone == 1500
    assert totals.saving == pytest.approx(1 - 1825 / 3100)
    assert totals.eta == {"b": 7 / 6, "c": 0.8}
    assert totals.planned_cold == ()


@pytest.mark.parametrize(("tokens", "cold", "planned"), [(60, 360.0, ()), (100, 600.0, ()), (250, 600.0, ("a",))])
def test_the_first_rung_of_a_trunk_counts_as_no_more_than_its_budget(tokens, cold, planned):
    """On less than its whole budget it counts as trained; what the trunk trains beyond is no cost from scratch."""
    part = TrunkRecord(until=0.3, steps=9, tokens=tokens, flops=1.0, member="none", warmup_steps=0, decay_steps=0)
    spent = dataclasses.replace(FIRST.flops, train=6.0 * tokens)
    first = dataclasses.replace(FIRST, trunk=part, tokens=tokens, flops=spent)
    second = grown("b", train=500.0, fisher=0.0, subspace=0.0, cold=1000.0, to_match=300.0, eta=1.0)
    totals = FamilyCost(rungs=(first, second))
    assert totals.all_cold == cold + 1000
    assert totals.inherited_as_trained == 6.0 * tokens + 500
    assert totals.planned_cold == planned
    assert [part.kind for part in totals.counts[0].parts] == ["planned" if planned else "cold", "cold"]
    assert [part.kind for part in totals.counts[1].parts] == ["cold", "inherited"]


def test_the_last_model_of_a_chain_costs_what_its_family_does():
    second = grown(
        "b", train=500.0, fisher=20.0, subspace=5.0, cold=1000.0, to_match=300.0, eta=7 / 6, inherited=600.0
    )
    third = grown("c", train=900.0, fisher=30.0, subspace=10.0, cold=1500.0, to_match=700.0, eta=0.8, inherited=1125.0)
    totals = FamilyCost(rungs=(FIRST, second, third))
    assert totals.last_grown == totals.inherited_to_match == 1825
    assert totals.last_model_cost == pytest.approx(1825 / 1500)
    assert totals.family_cost == pytest.approx(1825 / 3100)
    assert totals.eta_ceiling == {"b": pytest.approx(1000 / 600), "c": pytest.approx(1500 / 1125)}
    assert totals.totals().to_dict() == {
        "last_model": "c",
        "last_model_cost": pytest.approx(1825 / 1500),
        "family_cost": pytest.approx(1825 / 3100),
        "all_cold": 3100,
        "inherited_as_trained": 600 + 525 + 940,
        "inherited_to_match": 1825,
        "last_alone": 1500,
        "last_grown": 1825,
        "eta": {"b": 7 / 6, "c": 0.8},
        "eta_ceiling": {"b": pytest.approx(1000 / 600), "c": pytest.approx(1500 / 1125)},
    }


def test_the_last_model_of_a_trunk_does_not_pay_for_the_others_decays():
    first = dataclasses.replace(FIRST, flops=dataclasses.replace(FIRST.flops, branch=60.0))  # 540 of it in the trunk
    second = grown(
        "b", train=400.0, branch=40.0, fisher=0.0, subspace=0.0, cold=1000.0, to_match=390.0, inherited=540.0
    )
    third = grown("c", train=300.0, fisher=0.0, subspace=0.0, cold=1500.0, to_match=290.0, inherited=900.0)
    totals = FamilyCost(rungs=(first, second, third))
    assert second.flops.passed_on == third.flops.inherited
    assert totals.last_grown == 540 + 360 + 290
    assert totals.last_model_cost == pytest.approx(1190 / 1500)
    assert totals.inherited_to_match == 600 + 400 + 290  # the decays of the members are the family's
    assert totals.family_cost == pytest.approx(1290 / 3100)


def test_the_last_model_counts_without_a_match_of_those_between():
    second = grown("b", train=500.0, fisher=0.0, subspace=0.0, cold=1000.0, inherited=600.0)
    third = grown("c", train=900.0, fisher=0.0, subspace=0.0, cold=1500.0, to_match=300.0, inherited=1100.0)
    totals = FamilyCost(rungs=(FIRST, second, third))
    assert (totals.last_model_cost, totals.family_cost) == (pytest.approx(1400 / 1500), None)
    unknown = dataclasses.replace(third, lineage_complete=False)
    assert FamilyCost(rungs=(FIRST, second, unknown)).last_model_cost is None
    assert FamilyCost(rungs=(FIRST, third, second)).last_model_cost is None  # it did not match


def test_a_rung_without_a_baseline_counts_as_planned_and_leaves_to_match_open():
    second = grown("b", train=500.0, fisher=0.0, subspace=0.0, cold_tokens=200, per_token=5.0)
    totals = FamilyCost(rungs=(FIRST, second))
    assert totals.all_cold == 600 + 200 * 5
    assert totals.last_alone == 1000
    assert totals.planned_cold == ("b",)  # the last one
    assert totals.inherited_to_match is None
    assert totals.saving is None
    assert totals.eta == {"b": None}


def test_one_unmatched_rung_leaves_to_match_open():
    second = grown("b", train=500.0, fisher=0.0, subspace=0.0, cold=1000.0, to_match=300.0, eta=7 / 6)
    third = grown("c", train=900.0, fisher=0.0, subspace=0.0, cold=1500.0)
    totals = FamilyCost(rungs=(FIRST, second, third))
    assert totals.inherited_to_match is None
    assert totals.eta == {"b": 7 / 6, "c": None}


def test_the_first_rung_alone_is_cold():
    totals = FamilyCost(rungs=(FIRST,))
    assert totals.all_cold == totals.inherited_as_trained == totals.last_alone == 600


def test_there_must_be_a_rung():
    with pytest.raises(ValueError, match="there are none to add up"):
        FamilyCost(rungs=())
