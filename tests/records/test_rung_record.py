"""What a record says inheritance saved, worked out by hand."""

from importlib import metadata

import pytest

from hf_progressive.ladder.record import lineage_flops, matched, own_version

PARENT = {"flops": {"train": 60.0, "fisher": 3.0, "subspace": 1.0, "inherited": 36.0}}
CURVE = [
    {"flops": 4.0, "bits_per_byte": 3.0},
    {"flops": 25.0, "bits_per_byte": 2.0},
    {"flops": 100.0, "bits_per_byte": 1.0},
]
COLD = {"bits_per_byte": 1.5, "flops": 200.0}


def test_lineage_counts_everything_that_went_into_the_weights() -> None:
    assert lineage_flops(PARENT) == 100.0


def test_a_match_is_interpolated_in_log_flops_and_related_to_the_parents_whole_cost() -> None:
    record = matched({"curve": CURVE, "bits_per_byte": 1.0, "flops_to_match": None}, cold=COLD, parent=PARENT)
    assert record["flops_to_match"] == pytest.approx(50.0)  # half-way from 25 to 100 on a log scale
    assert record["saving"] == pytest.approx(0.75)
    assert record["eta"] == pytest.approx((200 - 50) / 100)
    assert record["gap_bits_per_byte"] == pytest.approx(-0.5)


def test_no_match_says_by_how_much_it_missed() -> None:
    empty = {"flops_to_match": None, "saving": None, "eta": None}
    record = matched({"curve": CURVE[:2], "bits_per_byte": 2.0, **empty}, cold=COLD, parent=PARENT)
    assert (record["flops_to_match"], record["saving"], record["eta"]) == (None, None, None)
    assert record["gap_bits_per_byte"] == pytest.approx(0.5)


def test_a_checkout_that_is_not_installed_has_a_version_to_record(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_version() == metadata.version("hf-progressive")

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert own_version() == "a checkout, not installed"
