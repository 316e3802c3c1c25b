"""Members of a trunk in a study: by a decay on a branch, by averaging, and the trunk that neither changes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from study_fixtures import study_config
from study_pretence import TRUNK_WORTH, pretend
from trunk_studies import END, THIN, trunk_mapping, trunk_study, weights_of

from hf_progressive.data import prepare_corpus
from hf_progressive.records.last_model import SeedCost, over_seeds
from hf_progressive.records.stages import StageMember
from hf_progressive.records.study import StudyRecord
from hf_progressive.report import write_report
from hf_progressive.report.study_findings import find_in_study
from hf_progressive.report.trunk_tables import members_table
from hf_progressive.study.plan import StudyPlan, plan_study
from hf_progressive.study.run import run_study
from hf_progressive.study.trunk_outcome import trunk_family
from hf_progressive.study.work import Worker

RECIPE = {
    "name": "with members",
    "members": True,
    "rungs": ["l2w16"],
    "trunk": [{**THIN, "until": 0.4}],
    "child_fractions": [1.0],
    "set": {"trunk.member_decay_fraction": 0.25, "trunk.average_over": 0.2, "trunk.average_of": 3},
}


def cost_of(seeds: tuple[int, ...]) -> SimpleNamespace:
    """A trunk's outcome: 10 FLOPs of stages and 60 of the last model, worth 100 from scratch."""
    costs = [
        SeedCost(seed=seed, value=0.7, c_lineage=10, c_child=60, c_scratch=100, bits_per_byte=2.0) for seed in seeds
    ]
    return SimpleNamespace(last_model_cost=over_seeds(costs))


def member(seed: int, worth: float | None) -> StageMember:
    """A member of the stage, whose decay took 3 FLOPs."""
    measured = {"bits_per_byte": 2.1, "constant_bits_per_byte": 2.2, "baseline_bits_per_byte": 2.1}
    return StageMember(stage="thin", until=0.4, seed=seed, kind="decay", flops=3.0, worth=worth, **measured)


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


def test_the_family_of_a_trunk_is_paid_for_with_its_members_decays(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path / "log")
    nothing = {"estimates": {}, "seconds": 0.0}
    monkeypatch.setattr(Worker, "average", lambda self, task, averaged: {"name": averaged.name, **nothing})
    ladder = {**trunk_mapping(corpus_file)["ladder"], "rungs": [THIN, END]}
    config = study_config(
        corpus_file,
        **trunk_mapping(corpus_file, ladder=ladder, recipes=[RECIPE], cold_fractions=[0.1, 1.0], seeds=[0, 1]),
    )
    record = StudyRecord.from_dict(run_study(config, tmp_path / "study"))
    (recipe,), thin, last = record.recipes, *record.rungs
    corpus = prepare_corpus(config.ladder.data, config.ladder.model.context, tmp_path / "study" / "data")
    (members, _), batch = plan_study(config, corpus.fingerprint).members, config.ladder.training.batch_tokens
    branch, decay = members.decayed, members.decayed.decay_steps
    tokens = (decay + members.stage.steps_on_trunk) * batch
    grown = tokens * thin.flops_per_token + recipe.points[0].finished[-1].flops
    # As pretended, models are worth TRUNK_WORTH of their share of the last one's steps, by their own size's baselines.
    worth = TRUNK_WORTH * branch.steps_on_trunk / last.cold_steps
    alone = TRUNK_WORTH * last.cold_flops
    assert recipe.family.seeds == 2
    assert recipe.family.inherited == pytest.approx(grown)
    assert recipe.family.last_alone == pytest.approx(alone)
    assert recipe.family.cold == pytest.approx(worth * thin.cold_flops + alone)
    assert recipe.family.over_last_alone == pytest.approx(grown / alone)
    found, over = find_in_study(record), f"{grown / alone:.2f}"
    assert found.headline.endswith(f"; both for {over} times it ({over} to {over})")
    assert found.explanation.endswith(f"of their own size, thin {100 * worth:.0f} %.")
    assert [tile.value for tile in found.tiles if tile.title == "family cost"] == [
        f"{100 * grown / (worth * thin.cold_flops + alone):.0f} %"
    ]


def test_a_member_counts_as_no_more_than_its_whole_budget_and_none_may_be_missing() -> None:
    cost = cost_of(seeds=(0, 1))
    sizes = [SimpleNamespace(name="thin", flops=40), SimpleNamespace(name="end", flops=100)]
    family = trunk_family(cost, sizes, [member(0, 0.5), member(1, 1.5)])
    assert (family.inherited, family.last_alone) == (10 + 60 + 3, 100)
    assert family.cold == 100 + (20 + 40) / 2
    for members in (
        [member(0, 0.5)],
        [member(0, 0.5), member(1, None)],
        [member(0, 0.5), member(1, 0.5), member(1, 0.6)],
    ):
        family = trunk_family(cost, sizes, members)
        assert (family.cold, family.inherited, family.over_last_alone) == (100, None, None)
    # Of two stages one has two members, of two ends, and the other none.
    twice = [member(seed, 0.5) for seed in (0, 0, 1, 1)]
    assert trunk_family(cost, [sizes[0], SimpleNamespace(name="other", flops=60), sizes[1]], twice).inherited is None
    assert trunk_family(None, sizes, []).inherited is None


def test_trunks_to_several_ends_have_members_and_a_family_of_their_own(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ladder = trunk_mapping(corpus_file)["ladder"]
    ladder["rungs"] = [THIN, END, {**END, "name": "l3w16", "n_layer": 3}]
    pretend(monkeypatch, tmp_path / "log")
    found = {}
    for name, ends in (("both", ["l2w16", "l3w16"]), ("last", ["l3w16"])):
        config = trunk_study(corpus_file, ladder=ladder, recipes=[{**RECIPE, "rungs": ends}], seeds=[0])
        found[name] = StudyRecord.from_dict(run_study(config, tmp_path / name))
    (both,), (last,) = (study.recipes for study in found.values())
    assert {(member.stage, member.end) for member in both.members} == {("thin", "l2w16"), ("thin", "l3w16")}
    assert both.family == last.family
    assert both.family.inherited is not None
    rows = members_table(found["both"]).rows
    assert {(row[1], row[4]) for row in rows} == {("thin (to l2w16)", "1"), ("thin (to l3w16)", "1")}
