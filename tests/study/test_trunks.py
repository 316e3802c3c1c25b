"""Trunks in a study: what is laid out, what it costs by hand-made arithmetic, and what growing into itself changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from study_pretence import TRUNK_WORTH, pretend
from trunk_studies import END, SAME, THIN, trunk_study, weights_of

from hf_progressive.config import RungConfig, load_study_config
from hf_progressive.data import prepare_corpus
from hf_progressive.report import write_report
from hf_progressive.study.plan import plan_study
from hf_progressive.study.run import run_study

EXAMPLES = Path(__file__).parents[2] / "examples" / "studies"
RECIPES: list[dict[str, Any]] = [
    {"name": "one step", "trunk": [{**THIN, "until": 0.4}]},
    {"name": "late", "trunk": [{**THIN, "until": 0.6}], "child_fractions": [1.0]},
    {
        "name": "two steps",
        "trunk": [{**THIN, "n_embd": 8, "n_head": 1, "until": 0.2}, {**THIN, "name": "b", "until": 0.4}],
    },
]


def test_a_trunk_reads_and_is_scheduled_like_its_baseline(corpus_file: Path) -> None:
    plan = plan_study(trunk_study(corpus_file, recipes=RECIPES), "corpus")
    blocks = 128 // 32  # of a step
    baseline = plan.cold["l2w16", 0][-1]
    for recipe in RECIPES:
        for end in plan.children[recipe["name"], "l2w16", 0]:
            stages = [*end.initial.lineage, end]
            assert stages[0].setup.first_block == baseline.setup.first_block == 0
            assert stages[0].setup.warmup_steps == baseline.setup.warmup_steps
            assert sum(stage.steps for stage in stages) == round(end.fraction * baseline.steps)
            for before, after in zip(stages, stages[1:], strict=False):
                assert after.setup.first_block == before.setup.first_block + before.steps * blocks
                assert before.decay_steps == 0
            assert {stage.setup.learning_rate for stage in stages} == {baseline.setup.learning_rate}
            alone = next((m for m in plan.cold["l2w16", 0] if m.fraction == end.fraction), None)
            assert alone is not None
            # A re-warm that runs into the decay shortens it.
            assert end.decay_steps == min(alone.decay_steps, end.steps - end.setup.warmup_steps)


def test_recipes_share_the_stages_that_they_have_in_common(corpus_file: Path) -> None:
    plan = plan_study(trunk_study(corpus_file, recipes=RECIPES), "corpus")
    one, late = (plan.children[name, "l2w16", 0][0].initial.parent for name in ("one step", "late"))
    assert one is not None
    assert late is not None
    assert one.setup.name == late.setup.name
    tasks = {task.name: task for task in plan.tasks}
    # The shorter stage branches off the longer one, a step before its end.
    assert tasks[one.name].uses == (late.checkpoint(one.steps - 1),)
    assert len(plan.tasks) == len({task.name for task in plan.tasks})


@pytest.mark.parametrize("shares", [[0.7, 1.0], [1.0]])
def test_the_cost_is_the_lineage_and_the_end_over_the_equivalent_budget(
    shares: list[float], corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path / "log")
    config = trunk_study(corpus_file, seeds=[0, 1, 2], child_fractions=shares)
    record = run_study(config, tmp_path / "study")
    assert record["complete"]
    plan = plan_study(config, "corpus")
    full = plan.cold["l2w16", 0][-1]
    end = plan.children["one step", "l2w16", 0][-1]
    per_step = [stage.initial.rung.size.flops_per_token * 128 for stage in (*end.initial.lineage, end)]
    step = record["recipes"][0]["rungs"][0]
    costs = {}
    for share in shares:
        thin, whole = round(0.4 * full.steps), round(share * full.steps)
        spent = thin * per_step[0] + (whole - thin) * per_step[1]
        worth = TRUNK_WORTH * whole * per_step[1]
        cost = next(entry["last_model_cost"] for entry in step["by_share"] if entry["fraction"] == share)
        assert cost["value"] == pytest.approx(spent / worth, rel=1e-9)
        assert cost["low"] == pytest.approx(cost["value"])
        assert cost["seeds"] == 3
        costs[share] = spent / worth
        lineage, own = thin * per_step[0], (whole - thin) * per_step[1]
    text = write_report(tmp_path / "study").markdown.read_text()
    rows = [f"| one step | l2w16 | {share:.0%} | {value:.2f} |".replace("%", " %") for share, value in costs.items()]
    assert all((row in text) == (len(shares) > 1) for row in rows)
    assert record["headline"]["last_model_cost"]["value"] == pytest.approx(spent / worth, rel=1e-9)
    assert step["eta"] == pytest.approx((worth - own) / lineage)
    assert (step["parent"], step["child"], step["matched"]) == ("thin", "l2w16", 3)
    assert record["recipes"][0]["trunk"][0]["until"] == 0.4


@pytest.mark.parametrize("until", [[0.4], pytest.param([0.2, 0.4], marks=pytest.mark.slow)])
def test_a_trunk_that_grows_into_itself_is_its_baseline_to_the_bit(
    until: list[float], corpus_file: Path, tmp_path: Path
) -> None:
    stages = [{**SAME, "name": f"same{share}", "until": share} for share in until]
    recipe = {"name": "none", "trunk": stages, "set": {"trunk.moments": "grown", "trunk.rewarm_fraction": 0.0}}
    config = trunk_study(corpus_file, recipes=[recipe])
    corpus = prepare_corpus(config.ladder.data, config.ladder.model.context, tmp_path / "data")
    plan = plan_study(config, corpus.fingerprint)
    cold = {model.fraction: model for model in plan.cold["l2w16", 0]}
    ends = plan.children["none", "l2w16", 0]
    weights = weights_of(tmp_path, [*cold.values(), *ends], config)
    for end in ends:
        expected = weights[cold[end.fraction].name]
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights[end.name].items())


@pytest.mark.slow
def test_fresh_moments_and_a_rewarm_make_it_another_run(corpus_file: Path, tmp_path: Path) -> None:
    recipe = {"name": "none", "trunk": [{**SAME, "until": 0.4}], "child_fractions": [1.0]}
    config = trunk_study(corpus_file, recipes=[recipe])
    corpus = prepare_corpus(config.ladder.data, config.ladder.model.context, tmp_path / "data")
    plan = plan_study(config, corpus.fingerprint)
    cold, end = plan.cold["l2w16", 0][-1], plan.children["none", "l2w16", 0][-1]
    weights = weights_of(tmp_path, [cold, end], config)
    assert not all(torch.equal(tensor, weights[cold.name][name]) for name, tensor in weights[end.name].items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"child_fractions": [0.5]},
            r"recipes.0.child_fractions: finished at 0.5, l2w16 decays from 0.3 on, before the trunk has grown",
        ),
        ({"cold_fractions": [1.0]}, "cold_fractions: a trunk is read on the baseline's curve; give two or more"),
        ({"recipes": [{"name": "a", "trunk": [THIN]}]}, r"recipes.0.trunk.0.until: is missing"),
        (
            {"recipes": [{"name": "a", "trunk": [{**THIN, "until": 0.9}]}]},
            r"recipes\.0: trunk\.0\.until: 0\.9 lies in the last rung's decay",
        ),
        ({"recipes": [{"name": "a"}]}, "ladder.rungs: a study needs two rungs or more, unless"),
        (
            {"recipes": [{"name": "a", "trunk": [{**END, "until": 0.4}]}]},
            r"recipes.0: rungs: the name 'l2w16' is given to 2 rungs",
        ),
        (
            {"recipes": [{"name": "a", "trunk": [{**THIN, "until": 0.4, "training": {"batch_tokens": 256}}]}]},
            r"recipes.0.trunk: the batch is \[128, 256\] tokens; keep to one in a trunk",
        ),
        (
            {"recipes": [{"name": "a", "trunk": [{**THIN, "until": 0.4}], "carry_moments": True}]},
            "carry_moments: in a trunk, set trunk.moments: grown instead",
        ),
        (
            {"recipes": [{"name": "a", "trunk": [{**THIN, "until": 0.4}], "set": {"trunk.moment": "grown"}}]},
            r"trunk.moment: unknown key; did you mean 'moments'",
        ),
        (
            {"recipes": [{"name": "a", "trunk": [{**THIN, "until": 0.4}], "rungs": ["thin"]}]},
            r"recipes.0.rungs: 'thin' is no rung; known: l2w16",
        ),
    ],
)
def test_what_a_study_of_trunks_refuses(changes: dict[str, Any], message: str, corpus_file: Path) -> None:
    with pytest.raises(ValueError, match=message):
        trunk_study(corpus_file, **changes)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in EXAMPLES.glob("trunk*/study.yaml")))
def test_the_examples_spend_what_their_layers_and_shares_say(name: str) -> None:
    config = load_study_config(EXAMPLES / name / "study.yaml")
    plan = plan_study(config, "corpus")
    context, vocabulary = config.ladder.model.context, config.ladder.data.tokenizer.vocab_size

    def per_token(rung: RungConfig) -> float:
        # Per layer 12 width² weights of GPT-2, 4 width² + 3 width · MLP of Llama, and attention; then the output head.
        if config.ladder.model.family == "gpt2":
            layers, width = rung.fields["n_layer"], rung.fields["n_embd"]
            weights = 12 * width**2
        else:
            layers, width = rung.fields["num_hidden_layers"], rung.fields["hidden_size"]
            weights = 4 * width**2 + 3 * width * rung.fields["intermediate_size"]
        return float(layers * (weights + 2 * context * width) + vocabulary * width)

    rung = config.ladder.rungs[-1]
    whole = next(model.flops for model in plan.cold[rung.name, 0] if model.fraction == 1)
    for recipe in config.recipes:
        end = plan.children[recipe.name, rung.name, 0][-1]
        spent = sum(model.flops for model in (*end.initial.lineage, end)) / whole
        shares = [0.0, *(stage.until or 0.0 for stage in recipe.trunk), end.fraction]
        sizes = [*recipe.trunk, rung]
        parts = zip(shares, shares[1:], sizes, strict=False)
        expected = sum((until - before) * per_token(size) for before, until, size in parts) / per_token(rung)
        assert spent == pytest.approx(expected, rel=3e-3)
