"""What a record says inheritance saved, worked out by hand; and what it says it ran on."""

import dataclasses
from importlib import metadata

import pytest
from accelerate import PartialState
from family_records import family

import hf_progressive
from hf_progressive.records.environment import environment
from hf_progressive.records.measurements import Baseline, CurvePoint
from hf_progressive.records.rung import RungFlops, RungRecord

CURVE = tuple(CurvePoint(flops=flops, bits_per_byte=bits) for flops, bits in ((4.0, 3.0), (25.0, 2.0), (100.0, 1.0)))
FIRST, SECOND = (RungRecord.from_dict(record) for record in family(2, without_baseline=(1,)))
PARENT = dataclasses.replace(
    FIRST, flops=RungFlops(per_token=1.0, train=60.0, fisher=3.0, subspace=1.0, inherited=36.0)
)
CHILD = dataclasses.replace(SECOND, curve=CURVE, bits_per_byte=1.0)
PHI = {"ewc_lambda": 0.1, "gamma": 0.0, "schedule": "linear", "until": 1.0}
COLD = Baseline(bits_per_byte=1.5, flops=200.0, curve=CURVE[-1:])


def test_lineage_counts_everything_that_went_into_the_weights() -> None:
    assert PARENT.flops.lineage == 100.0


def test_a_match_is_interpolated_in_log_flops_and_related_to_the_parents_whole_cost() -> None:
    record = CHILD.with_baseline(COLD, PARENT)
    assert record.flops_to_match == pytest.approx(50.0)  # half-way from 25 to 100 on a log scale
    assert record.saving == pytest.approx(0.75)
    assert record.eta == pytest.approx((200 - 50) / 100)
    assert record.eta_ceiling == pytest.approx(200 / 100)
    assert record.last_model_cost == pytest.approx((100 + 50) / 200)
    assert record.gap_bits_per_byte == pytest.approx(-0.5)


def test_a_child_does_not_inherit_what_only_finished_the_member_before_it() -> None:
    flops = dataclasses.replace(PARENT.flops, branch=20.0)
    assert (flops.spent, flops.lineage, flops.passed_on) == (64.0, 100.0, 80.0)
    record = CHILD.with_baseline(COLD, dataclasses.replace(PARENT, flops=flops))
    assert record.eta == pytest.approx((200 - 50) / 80)
    assert record.last_model_cost == pytest.approx((80 + 50) / 200)
    assert record.last_model_cost == pytest.approx(1 + (1 - record.eta) / record.eta_ceiling)


def test_no_eta_where_it_is_not_known_what_went_into_the_parent() -> None:
    record = CHILD.with_baseline(COLD, dataclasses.replace(PARENT, lineage_complete=False))
    assert (record.saving, record.eta) == (pytest.approx(0.75), None)
    assert (record.eta_ceiling, record.last_model_cost) == (None, None)


def test_no_match_says_by_how_much_it_missed() -> None:
    record = dataclasses.replace(CHILD, curve=CURVE[:2], bits_per_byte=2.0).with_baseline(COLD, PARENT)
    assert (record.flops_to_match, record.saving, record.eta) == (None, None, None)
    assert (record.eta_ceiling, record.last_model_cost) == (None, None)
    assert record.gap_bits_per_byte == pytest.approx(0.5)


def test_a_record_is_written_as_it_was_read() -> None:
    for written in family(
        3, origin="taken", phi={"ewc_lambda": 0.1, "gamma": 0.0, "schedule": "linear", "until": 1.0}
    ):
        read = RungRecord.from_dict(written).to_dict()
        assert {key: read[key] for key in ("curve", "tokens", "flops_to_match", "phi", "config")} == {
            key: written[key] for key in ("curve", "tokens", "flops_to_match", "phi", "config")
        }
        assert RungRecord.from_dict(read).to_dict() == read


def test_a_checkout_that_is_not_installed_has_a_version_to_record(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = metadata.version

    def missing(name: str) -> str:
        if name == "hf-progressive":
            raise metadata.PackageNotFoundError(name)
        return ask(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert environment(PartialState())["hf_progressive"] == hf_progressive.__version__
