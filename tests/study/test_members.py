"""Members of a trunk in a study: by a decay on a branch, by averaging, and the trunk that neither changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from study_fixtures import study_config
from study_pretence import pretend
from trunk_studies import END, THIN, trunk_mapping, trunk_study, weights_of

from hf_progressive.data import prepare_corpus
from hf_progressive.report import write_report
from hf_progressive.study.plan import StudyPlan, plan_study
from hf_progressive.study.run import run_study
from hf_progressive.study.work import Worker

RECIPE = {
    "name": "with members",
    "members": True,
    "rungs": ["l2w16"],
    "trunk": [{**THIN, "until": 0.4}],
    "child_fractions": [1.0],
    "set": {"trunk.member_decay_fraction": 0.25, "trunk.average_over": 0.2, "trunk.average_of": 3},
}


@pytest.fixture
def plan(corpus_file: Path, tmp_path: Path) -> StudyPlan:
    """A trunk with members, planned on its corpus."""
    config = trunk_study(corpus_file, recipes=[RECIPE])
    corpus = prepare_corpus(config.ladder.data, config.ladder.model.context, tmp_path / "together" / "data")
    return plan_study(config, corpus.fingerprint)


@pytest.mark.slow
def test_members_are_what_they_would_be_alone_and_leave_the_trunk_as_it_was(plan: StudyPlan, tmp_path: Path) -> None:
    (members,) = plan.members
    end, stage = plan.children["with members", "l2w16", 0][0], members.stage
    together = weights_of(tmp_path / "together", [end, members.decayed], plan.config, [members.averaged])
    # Without members the stage's own run is the longest, and nothing branches off it.
    alone = weights_of(tmp_path / "alone", [end], plan.config)
    assert all(torch.equal(tensor, together[end.name][name]) for name, tensor in alone[end.name].items())
    decayed = weights_of(tmp_path / "decayed", [members.decayed], plan.config)[members.decayed.name]
    assert all(torch.equal(tensor, together[members.decayed.name][name]) for name, tensor in decayed.items())
    # An average is the mean of what the trunk is at these steps, each trained by itself.
    steps = members.averaged.steps
    assert (len(steps), steps[-1]) == (3, stage.steps)
    parts = [stage.setup.stage(step / stage.setup.cold_steps) for step in steps]
    assert [part.steps for part in parts] == list(steps)
    taken = weights_of(tmp_path / "parts", parts, plan.config)
    for name, tensor in together[members.averaged.name].items():
        mean = torch.stack([taken[part.name][name].double() for part in parts]).mean(0)
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-6, atol=1e-7)


def test_a_member_decays_over_its_share_of_the_trunk_from_where_the_next_stage_grows(plan: StudyPlan) -> None:
    (members,) = plan.members
    stage, decayed = members.stage, members.decayed
    assert (decayed.decay_begins, decayed.steps - stage.steps) == (stage.steps, -(-stage.steps // 4))
    assert decayed.setup is stage.setup


@pytest.mark.slow
def test_members_are_read_on_the_curve_of_their_own_sizes_baselines(corpus_file: Path, tmp_path: Path) -> None:
    ladder = {**trunk_mapping(corpus_file)["ladder"], "rungs": [THIN, END]}
    config = study_config(
        corpus_file, **trunk_mapping(corpus_file, ladder=ladder, recipes=[RECIPE], cold_fractions=[0.5, 1.0])
    )
    record = run_study(config, tmp_path / "study")
    assert record["complete"]
    by_kind = {member["kind"]: member for member in record["recipes"][0]["members"]}
    assert set(by_kind) == {"decay", "average"}
    whole = next(runs["points"][-1] for runs in record["cold"] if runs["rung"] == "thin")
    for member in by_kind.values():
        assert (member["stage"], member["until"], member["seed"]) == ("thin", 0.4, 0)
        assert member["baseline_bits_per_byte"] == whole["bits_per_byte"]
        assert (member["worth"] > 1) == (member["bits_per_byte"] < whole["bits_per_byte"])
    assert by_kind["average"]["flops"] == 0 < by_kind["decay"]["flops"]
    assert by_kind["decay"]["bits_per_byte"] < by_kind["decay"]["constant_bits_per_byte"]
    assert not any((tmp_path / "study" / "weights").iterdir())
    text = write_report(tmp_path / "study").markdown.read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| with members | thin |")]
    for row, kind in zip(rows, ("average", "decay"), strict=True):
        member = by_kind[kind]
        assert row[3:6] == [kind, "1", f"{member['bits_per_byte']:.4f}"]
        assert row[7] == f"{100 * member['worth']:.0f} %"


def test_only_trunks_have_members(corpus_file: Path) -> None:
    with pytest.raises(ValueError, match="members: only a trunk has them; list its stages in trunk"):
        study_config(corpus_file, recipes=[{"name": "a", "members": True}])


def test_a_study_is_not_complete_without_its_averages(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    pretend(monkeypatch, tmp_path / "log")
    monkeypatch.setattr(Worker, "average", stop)
    records: list[dict[str, Any]] = []
    with pytest.raises(KeyboardInterrupt):
        run_study(trunk_study(corpus_file, recipes=[RECIPE]), tmp_path / "study", on_record=records.append)
    assert (records[-1]["finished"], records[-1]["complete"]) == (records[-1]["runs"], False)
