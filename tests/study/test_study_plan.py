"""The graph of a study's tasks: order, sharing, schedules and what is read."""

from pathlib import Path
from typing import Any

import pytest
from ladder_fixtures import RUNGS
from study_fixtures import study_config, study_mapping

from hf_progressive.config.renamed import RENAMED
from hf_progressive.study.models import FinishedModel, InitialModel, digest
from hf_progressive.study.plan import StudyPlan, plan_study
from hf_progressive.study.tasks import maker_of

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


def names(models: list[FinishedModel]) -> list[str]:
    return [model.name for model in models]


def initial_models(plan: StudyPlan) -> list[InitialModel]:
    return [task.work for task in plan.tasks if isinstance(task.work, InitialModel)]


def of_one_setup(plan: StudyPlan) -> list[list[FinishedModel]]:
    setups: dict[str, list[FinishedModel]] = {}
    for model in plan.models:
        setups.setdefault(model.setup.name, []).append(model)
    return list(setups.values())


def test_tasks_stand_after_what_they_need_and_once(corpus_file: Path) -> None:
    plan = planned(corpus_file)
    order = [task.name for task in plan.tasks]
    assert len(order) == len(set(order)) == len(initial_models(plan)) + len(plan.models)
    for place, task in enumerate(plan.tasks):
        if isinstance(task.work, FinishedModel):
            assert task.work.initial.init in task.needs
        else:
            assert isinstance(task.work, InitialModel)
            assert list(task.needs) == [f"{model.name}/final" for model in task.work.lineage[-1:]]
        for path in (*task.needs, *task.uses):
            assert order.index(maker_of(path)) < place
            assert path in plan.tasks[order.index(maker_of(path))].makes
    for models in of_one_setup(plan):
        assert models[0].steps == max(model.steps for model in models)


def test_what_two_recipes_have_in_common_is_one_task(corpus_file: Path) -> None:
    plan = planned(corpus_file)
    for rung in ("l2w16", "l2w24"):
        assert names(plan.children["exact", rung, 0]) == names(plan.children["same", rung, 0])
        exact, ewc = plan.children["exact", rung, 0][0], plan.children["EWC", rung, 0][0]
        assert exact.initial.name != ewc.initial.name
        assert exact.initial.source == ewc.initial.source
    late = plan.children["late", "l2w24", 1][0].initial.parent
    assert late is not None
    assert late.setup.name == plan.children["exact", "l2w16", 1][0].setup.name
    assert late.fraction == 0.65
    assert ("late", "l2w24", 0) not in plan.children


def test_another_recipe_renames_nothing(corpus_file: Path) -> None:
    fewer, more = planned(corpus_file, recipes=RECIPES[:1]), planned(corpus_file)
    assert set(names(fewer.models)) < set(names(more.models))
    other = planned(corpus_file, recipes=[{"name": "exact", "set": {"training.max_grad_norm": 0.5}}])
    assert not {name for name in names(other.models) if "child" in name} & set(names(more.models))


def test_a_share_of_the_budget_is_as_many_tokens_in_any_batch(corpus_file: Path) -> None:
    batch = study_mapping(corpus_file)["ladder"]["training"]["batch_tokens"]
    recipes = [
        {"name": "exact"},
        {"name": "twice", "set": {"training.batch_tokens": 2 * batch}, "parent_recipe": "exact"},
    ]
    plan = planned(corpus_file, recipes=recipes)
    exact, twice = (plan.children[recipe, "l2w16", 0] for recipe in ("exact", "twice"))
    assert exact[0].initial.name == twice[0].initial.name
    for one, other in zip(exact, twice, strict=True):
        assert other.setup.training.batch_tokens == 2 * batch
        assert abs(one.tokens - other.tokens) <= 2 * batch


def test_recipes_that_share_an_initial_model_keep_their_own_penalty(corpus_file: Path) -> None:
    weights = (0.01, 1.0)
    recipes = [{"name": "exact"}]
    recipes += [{"name": f"EWC {w}", "set": {"phi.ewc_lambda": w}, "parent_recipe": "exact"} for w in weights]
    plan = planned(corpus_file, recipes=recipes)
    first, second = (plan.children[f"EWC {w}", "l2w16", 0][0] for w in weights)
    assert first.initial.name == second.initial.name
    assert first.name != second.name
    assert [model.setup.phi.ewc_lambda for model in (first, second) if model.setup.phi] == list(weights)
    assert plan.children["exact", "l2w16", 0][0].setup.phi is None


def test_omega_of_an_optimizer_that_trained_a_part_is_refused(corpus_file: Path) -> None:
    part, whole = {"training.trainable": ["transformer.h.*"]}, {"training.trainable": "all"}
    read = {"phi.ewc_lambda": 0.1, "phi.fisher.kind": "optimizer"}
    recipes = [{"name": "part", "set": part}, {"name": "held", "set": {**whole, **read}, "parent_recipe": "part"}]
    with pytest.raises(ValueError, match=r"has no Ω of what training.trainable froze in l2w16, which l2w24 grows"):
        planned(corpus_file, recipes=recipes)
    planned(corpus_file, recipes=[recipes[0], {**recipes[1], "rungs": ["l2w16"]}])  # whose parent trained all


def test_branches_begin_where_their_decay_does(corpus_file: Path) -> None:
    plan = planned(corpus_file)
    tasks = {task.name: task for task in plan.tasks}
    for models in of_one_setup(plan):
        setup, longest = models[0].setup, models[0]
        assert setup.warmup_steps == plan.cold[longest.initial.rung.name, 0][0].setup.warmup_steps
        assert tasks[longest.name].uses == ()
        for model in models:
            share = setup.training.decay_fraction
            assert model.decay_begins == max(setup.warmup_steps, model.steps - -int(-share * model.steps // 1))
            assert setup.warmup_steps <= model.decay_begins <= longest.decay_begins
            if model is not longest:
                assert tasks[model.name].uses == (longest.checkpoint(model.decay_begins),)
    straight = plan.children["straight", "l2w16", 0]
    assert {model.decay_begins for model in straight} == {straight[0].setup.warmup_steps}


def test_child_and_baseline_read_the_same_blocks_and_a_lineage_reads_none_twice(corpus_file: Path) -> None:
    plan = planned(corpus_file)
    context = plan.config.ladder.model.context
    for (_, rung, seed), models in plan.children.items():
        assert models[0].setup.first_block == plan.cold[rung, seed][0].setup.first_block
        spans = [
            range(model.setup.first_block, model.setup.first_block + model.tokens // context)
            for model in [*models[0].initial.lineage, models[-1]]
        ]
        for before, after in zip(spans, spans[1:], strict=False):
            assert before.stop <= after.start


def test_seeds_draw_weights_growth_and_order(corpus_file: Path) -> None:
    plan = planned(corpus_file)
    draws = [initial.draw for initial in initial_models(plan) if initial.parent is None]
    assert len(set(draws)) == len(draws)
    assert [plan.cold["l1w16", seed][0].setup.order for seed in (0, 1)] == [0, 1]
    assert plan_study(plan.config, "another corpus").tasks[0].name != plan.tasks[0].name


def test_the_sweep_trains_baseline_and_child_on_one_rung_and_seed(corpus_file: Path) -> None:
    plan = planned(corpus_file, learning_rates={"cold": [1e-3, 3e-3], "child": [1e-3], "rung": "l2w24"})
    kinds = [(kind, rate, run.setup.learning_rate, run.fraction, run.initial.seed) for kind, rate, run in plan.swept]
    assert kinds == [("cold", 1e-3, 1e-3, 1.0, 0), ("cold", 3e-3, 3e-3, 1.0, 0), ("child", 1e-3, 1e-3, 0.5, 0)]
    # The rate that the ladder itself has costs nothing more.
    assert plan.swept[1][2].name == plan.cold["l2w24", 0][-1].name


def test_results_keep_their_names_where_keys_of_the_configuration_have_new_ones(
    corpus_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: list[str] = []

    def watched(value: Any) -> str:
        settings.extend(key for part in value if isinstance(part, dict) for key in part)
        return digest(value)

    monkeypatch.setattr("hf_progressive.study.models.digest", watched)
    planned(corpus_file)
    assert {old for old, new in RENAMED.items() if new == "decay_fraction"} <= set(settings)
    assert not set(RENAMED.values()) & set(settings)


def test_lengths_of_as_many_steps_are_refused_before_anything_is_trained(corpus_file: Path) -> None:
    with pytest.raises(ValueError, match=r"^cold_fractions: \[0.5, 0.5001, 1.0\] of l2w16's \d+ steps are"):
        planned(corpus_file, cold_fractions=[0.5, 0.5001, 1.0])
    with pytest.raises(ValueError, match=r"^child_fractions: .* some of them the same; take them farther apart"):
        planned(corpus_file, recipes=[{"name": "close", "child_fractions": [0.9, 0.90001]}])


@pytest.mark.parametrize("key", ["rungs", "seeds"])
def test_a_recipe_that_measures_nothing_is_refused(key: str, corpus_file: Path) -> None:
    with pytest.raises(ValueError, match=rf"{key}: the list is empty; leave it out to measure all"):
        planned(corpus_file, recipes=[{"name": "nothing", key: []}])


@pytest.mark.parametrize(
    ("phi", "training", "message"),
    [
        (
            {"phi.fisher.kind": "optimizer"},
            {"optimizer": "muon"},
            "recipe 'EWC': phi.fisher.kind: optimizer reads sec",
        ),
        (
            {"phi.fisher.kind": "optimizer"},
            {"arguments": {"optim": "sgd"}},
            "recipe 'EWC': phi.fisher.kind: optimizer",
        ),
    ],
)
def test_a_penalty_that_cannot_be_estimated_is_refused_before_anything_trains(
    corpus_file: Path, phi: dict[str, Any], training: dict[str, Any], message: str
) -> None:
    ladder = {**study_mapping(corpus_file)["ladder"], "rungs": RUNGS}
    ladder["training"] = {**ladder["training"], **training}
    recipes = [{"name": "exact"}, {"name": "EWC", "set": {"phi.ewc_lambda": 0.1, **phi}, "parent_recipe": "exact"}]
    with pytest.raises(ValueError, match=message):
        plan_study(study_config(corpus_file, ladder=ladder, recipes=recipes), "corpus")


def test_a_trunk_is_no_parent_of_a_chain(corpus_file: Path) -> None:
    stage = {"name": "thin", "n_layer": 1, "n_embd": 8, "n_head": 1, "until": 0.1}
    recipes = [{"name": "trunk", "trunk": [stage]}, {"name": "chain", "parent_recipe": "trunk"}]
    with pytest.raises(
        ValueError, match=r"recipes\.1\.parent_recipe: 'trunk' is a trunk, whose models are no parents"
    ):
        planned(corpus_file, recipes=recipes)
