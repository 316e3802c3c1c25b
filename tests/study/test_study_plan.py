"""The graph of a study's tasks: order, sharing, schedules and what is read."""

from pathlib import Path
from typing import Any

from ladder_fixtures import RUNGS
from study_fixtures import study_config, study_mapping

from hf_progressive.study.plan import StudyPlan, plan_study
from hf_progressive.study.tasks import Run, Start

RECIPES: list[dict[str, Any]] = [
    {"name": "exact"},
    {"name": "same"},
    {"name": "EWC", "set": {"phi.ewc_lambda": 0.1}, "parent_recipe": "exact"},
    {"name": "late", "parent_recipe": "exact", "parent_fraction": 0.65, "rungs": ["l2w24"], "seeds": [1]},
    {"name": "straight", "set": {"training.decay_fraction": 0.9}, "rungs": ["l2w16"]},
]


def planned(corpus: Path, **changes: Any) -> StudyPlan:
    ladder = {**study_mapping(corpus)["ladder"], "rungs": RUNGS}
    config = study_config(corpus, **{"ladder": ladder, "recipes": RECIPES, "seeds": [0, 1], **changes})
    return plan_study(config, "corpus")


def test_tasks_stand_after_what_they_need_and_once(corpus_file: Path) -> None:
    plan = planned(corpus_file)
    names = [task.name for task in plan.tasks]
    assert len(names) == len(set(names)) == len(plan.graph.starts) + len(plan.graph.runs)
    for place, task in enumerate(plan.tasks):
        needed = task.parent if isinstance(task, Start) else task.start
        assert needed is None or names.index(needed.name) < place
        if isinstance(task, Run):
            assert names.index(task.group.trunk.name) <= place


def test_what_two_recipes_have_in_common_is_one_task(corpus_file: Path) -> None:
    plan = planned(corpus_file)
    for rung in ("l2w16", "l2w24"):
        assert plan.children["exact", rung, 0] == plan.children["same", rung, 0]
        exact, ewc = plan.children["exact", rung, 0][0], plan.children["EWC", rung, 0][0]
        assert exact.start is not ewc.start
        assert exact.start.parent is ewc.start.parent
    late = plan.children["late", "l2w24", 1][0].start.parent
    assert late is not None
    assert late.group is plan.children["exact", "l2w16", 1][0].group
    assert late.fraction == 0.65
    assert ("late", "l2w24", 0) not in plan.children


def test_another_recipe_renames_nothing(corpus_file: Path) -> None:
    fewer, more = planned(corpus_file, recipes=RECIPES[:1]), planned(corpus_file)
    assert set(fewer.graph.runs) < set(more.graph.runs)
    other = planned(corpus_file, recipes=[{"name": "exact", "set": {"training.max_grad_norm": 0.5}}])
    assert not {run for run in other.graph.runs if "child" in run} & set(more.graph.runs)


def test_a_share_of_the_budget_is_as_many_tokens_in_any_batch(corpus_file: Path) -> None:
    batch = study_mapping(corpus_file)["ladder"]["training"]["batch_tokens"]
    recipes = [
        {"name": "exact"},
        {"name": "twice", "set": {"training.batch_tokens": 2 * batch}, "parent_recipe": "exact"},
    ]
    plan = planned(corpus_file, recipes=recipes)
    exact, twice = (plan.children[recipe, "l2w16", 0] for recipe in ("exact", "twice"))
    assert exact[0].start is twice[0].start
    for one, other in zip(exact, twice, strict=True):
        assert other.group.training.batch_tokens == 2 * batch
        assert abs(one.tokens - other.tokens) <= 2 * batch


def test_recipes_that_share_a_start_keep_their_own_penalty(corpus_file: Path) -> None:
    weights = (0.01, 1.0)
    recipes = [{"name": "exact"}]
    recipes += [{"name": f"EWC {w}", "set": {"phi.ewc_lambda": w}, "parent_recipe": "exact"} for w in weights]
    plan = planned(corpus_file, recipes=recipes)
    first, second = (plan.children[f"EWC {w}", "l2w16", 0][0] for w in weights)
    assert first.start is second.start
    assert first.name != second.name
    assert [run.group.phi.ewc_lambda for run in (first, second) if run.group.phi] == list(weights)
    assert plan.children["exact", "l2w16", 0][0].group.phi is None


def test_branches_begin_where_their_decay_does(corpus_file: Path) -> None:
    plan = planned(corpus_file)
    for group in plan.graph.groups.values():
        assert group.warmup_steps == plan.cold[group.start.rung.name, 0][0].group.warmup_steps
        for run in group.runs:
            share = group.training.decay_fraction
            assert run.branch_step == max(group.warmup_steps, run.steps - -int(-share * run.steps // 1))
            assert group.warmup_steps <= run.branch_step <= group.trunk.branch_step
    straight = plan.children["straight", "l2w16", 0]
    assert {run.branch_step for run in straight} == {straight[0].group.warmup_steps}


def test_child_and_baseline_read_the_same_blocks_and_a_lineage_reads_none_twice(corpus_file: Path) -> None:
    plan = planned(corpus_file)
    context = plan.config.ladder.model.context
    for (_, rung, seed), runs in plan.children.items():
        assert runs[0].group.first_block == plan.cold[rung, seed][0].group.first_block
        spans = [
            range(run.group.first_block, run.group.first_block + run.tokens // context)
            for run in [*runs[0].start.lineage, runs[-1]]
        ]
        for before, after in zip(spans, spans[1:], strict=False):
            assert before.stop <= after.start


def test_seeds_draw_weights_growth_and_order(corpus_file: Path) -> None:
    plan = planned(corpus_file)
    draws = [start.draw for start in plan.graph.starts.values() if start.parent is None]
    assert len(set(draws)) == len(draws)
    assert [plan.graph.order_of(seed) for seed in (0, 1)] == [0, 1]
    assert plan_study(plan.config, "another corpus").tasks[0].name != plan.tasks[0].name


def test_the_sweep_trains_baseline_and_child_on_one_rung_and_seed(corpus_file: Path) -> None:
    plan = planned(corpus_file, learning_rates={"cold": [1e-3, 3e-3], "child": [1e-3], "rung": "l2w24"})
    kinds = [(kind, rate, run.group.learning_rate, run.fraction, run.start.seed) for kind, rate, run in plan.swept]
    assert kinds == [("cold", 1e-3, 1e-3, 1.0, 0), ("cold", 3e-3, 3e-3, 1.0, 0), ("child", 1e-3, 1e-3, 0.5, 0)]
    # The rate that the ladder itself has costs nothing more.
    assert plan.swept[1][2] is plan.cold["l2w24", 0][-1]
