"""CORE from end to end: known scores, agreement with the slow reference, names, resumption, processes."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from core_bundle_writer import WORDS, train_tokenizer, varied_tasks, word_tokenizer, write_bundle
from core_reference import NaiveGPT2, reference_answers
from ladder_fixtures import RUNGS, ladder_mapping
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from hf_progressive.config import LadderConfig, strict_yaml
from hf_progressive.evaluation.core import evaluate as core
from hf_progressive.evaluation.core.bundle import CORE_TASKS, load_bundle
from hf_progressive.evaluation.core.evaluate import answer_task, evaluate_core
from hf_progressive.ladder.rung_loop import run_ladder

# How many examples per real task the longer comparison asks; 0 asks all 52,400 of each model, which takes an hour.
MORE_EXAMPLES = int(os.environ.get("CORE_TEST_EXAMPLES", "25")) or None

REAL_BUNDLE = Path(os.environ.get("CORE_BUNDLE", Path(__file__).parents[3] / "shared" / "data" / "core"))

SINGLE_PRECISION = 200  # examples of a task that are compared in float32 as well


def tiny_gpt2(vocab_size, context, layers=1, **fields):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=context,
        n_embd=16,
        n_layer=layers,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        **fields,
    )
    model = GPT2LMHeadModel(config)
    model.transformer.wte.weight.data.mul_(20)  # as large as in a trained model
    return model.eval()


@pytest.fixture
def toy(tmp_path):
    """A bundle of all kinds, a tokenizer trained on its words, a tiny model with a context that cuts prompts."""
    bundle_dir = write_bundle(tmp_path / "bundle", varied_tasks(), absent=["squad"])
    tokenizer = train_tokenizer([" ".join(WORDS), "\nAnswer: "] * 4)
    return tiny_gpt2(len(tokenizer), 24), tokenizer, bundle_dir


# ---------------------------------------------------------------------------------------------------------------------
# Known values

VOCABULARY = ["<s>", "fire", "ice", "right", "wrong", "then", "q0", "q1", "q2"]
CHOICES = [{"query": f"q{n} then", "choices": ["ice", "fire"], "gold": 1} for n in range(3)]
SCHEMAS = [{"context_options": [f"q{n} wrong", f"q{n} right"], "continuation": "then", "gold": 1} for n in range(3)]
TEXTS = [{"context": f"q{n} then", "continuation": "fire fire"} for n in range(3)]


def bigram_model(log_odds):
    """A stock GPT-2 whose logits are a table: `log_odds` [(previous, next)], zero elsewhere."""
    size = len(VOCABULARY)
    config = GPT2Config(
        vocab_size=size, n_positions=64, n_embd=size, n_layer=1, n_head=1, tie_word_embeddings=False, bos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    for parameter in model.parameters():
        parameter.data.zero_()
    model.transformer.wte.weight.data.copy_(torch.eye(size))
    # Undo the normalisation of a one-hot vector.
    model.transformer.ln_f.weight.data.fill_(math.sqrt((1 - 1 / size) / size + config.layer_norm_epsilon))
    model.transformer.ln_f.bias.data.fill_(1 / size)
    for (previous, following), value in log_odds.items():
        rows = range(size) if previous is None else [VOCABULARY.index(previous)]
        for row in rows:
            model.lm_head.weight.data[VOCABULARY.index(following), row] = value
    return model


@pytest.fixture
def rigged_bundle(tmp_path):
    tasks = {
        "piqa": ("multiple_choice", 1, None, 50, CHOICES),
        "winograd": ("schema", 1, None, 50, SCHEMAS),
        "jeopardy": ("language_modeling", 1, None, 0, TEXTS),
    }
    return write_bundle(tmp_path, tasks)


@pytest.mark.parametrize(("sign", "accuracy"), [(1, 1.0), (-1, 0.0)])
def test_a_model_rigged_for_or_against_the_gold_answer(rigged_bundle, sign, accuracy):
    model = bigram_model({(None, "fire"): 9.0 * sign, ("right", "then"): 5.0 * sign, ("wrong", "then"): -5.0 * sign})
    result = evaluate_core(model, word_tokenizer(VOCABULARY), rigged_bundle, progress=False)
    assert [task.accuracy for task in result.tasks] == [accuracy] * 3
    assert [task.ties for task in result.tasks] == [0] * 3
    assert [task.centred for task in result.tasks] == ([1.0] * 3 if sign > 0 else [-1.0, -1.0, 0.0])


def test_equal_logits_give_the_first_option_and_the_lowest_token_and_count_as_ties(rigged_bundle):
    tokenizer = word_tokenizer(VOCABULARY)
    result = evaluate_core(bigram_model({}), tokenizer, rigged_bundle, progress=False)
    # Gold is option 1 everywhere, and the continuation is not the token with id 0.
    assert [(task.accuracy, task.ties) for task in result.tasks] == [(0.0, 3)] * 3

    first = [item | {"gold": 0} for item in CHOICES]
    lowest = [{"context": "q0", "continuation": "<s> <s>"}]
    tasks = {"piqa": ("multiple_choice", 0, None, 50, first), "jeopardy": ("language_modeling", 0, None, 0, lowest)}
    result = evaluate_core(bigram_model({}), tokenizer, write_bundle(rigged_bundle, tasks), progress=False)
    assert [(task.accuracy, task.ties) for task in result.tasks] == [(1.0, 3), (1.0, 1)]


# ---------------------------------------------------------------------------------------------------------------------
# Agreement with the reference


def assert_agrees(model, tokenizer, bundle_dir, task, max_per_task):
    """Compare every answer in float64, and many in float32 wherever two losses are not within its rounding."""
    context = model.config.n_positions
    expected = list(reference_answers(model, tokenizer, bundle_dir, task.label, context, max_per_task))
    answers = answer_task(model.double(), tokenizer, task, max_per_task=max_per_task)
    assert [(answer.correct, answer.truncated) for answer in answers] == [(a, b) for a, b, _ in expected]
    if len(expected) > SINGLE_PRECISION:
        expected = list(
            reference_answers(model, tokenizer, bundle_dir, task.label, context, max_per_task=SINGLE_PRECISION)
        )
    single = answer_task(model.float(), tokenizer, task, max_per_task=len(expected), batch_size=5)
    for answer, (correct, _, losses) in zip(single, expected, strict=True):
        lowest, *others = sorted(losses)
        assert answer.correct == correct or min(others) - lowest < 1e-5
    return sum(answer.truncated for answer in answers)


@pytest.mark.parametrize("layers", [1, 3])
def test_the_reference_computes_what_the_stock_class_computes(layers):
    model = tiny_gpt2(50, 24, layers).double()
    tokens = torch.randint(50, (20,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0]
    torch.testing.assert_close(torch.from_numpy(NaiveGPT2(model)(tokens)), logits, rtol=1e-12, atol=1e-12)


def train_rung(folder, texts, context, vocab_size):
    """The second rung of a tiny ladder trained on texts, as a stock model with its tokenizer."""
    corpus = folder / "texts.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    mapping = ladder_mapping(corpus, model={"context": context}, rungs=RUNGS[:2], cold="none")
    mapping["data"]["tokenizer"]["vocab_size"] = vocab_size
    mapping["training"] |= {"tokens_per_parameter": 1.0, "batch_tokens": 8 * context, "learning_rate": 1e-2}
    final = run_ladder(strict_yaml.build(LadderConfig, mapping), folder / "run")[-1].folder
    return AutoModelForCausalLM.from_pretrained(final), AutoTokenizer.from_pretrained(final)


def texts_of(bundle, per_task):
    examples = (example for task in bundle.tasks for example in task.examples[:per_task])
    return [" ".join(example.options[example.gold]) for example in examples]


def test_every_answer_is_the_reference_s(toy):
    model, tokenizer, bundle_dir = toy
    for task in load_bundle(bundle_dir).tasks:
        truncated = assert_agrees(model, tokenizer, bundle_dir, task, None)
        assert 0 < truncated <= len(task.examples)


def test_every_answer_of_a_trained_rung_is_the_reference_s(tmp_path):
    bundle_dir = write_bundle(tmp_path / "bundle", varied_tasks(40))
    bundle = load_bundle(bundle_dir)
    model, tokenizer = train_rung(tmp_path, texts_of(bundle, 40) * 4, context=24, vocab_size=290)
    truncated = [assert_agrees(model, tokenizer, bundle_dir, task, None) for task in bundle.tasks]
    assert all(truncated)


@pytest.fixture(scope="module")
def real_bundle():
    if not REAL_BUNDLE.is_dir():
        pytest.skip(f"no CORE bundle at {REAL_BUNDLE}; name one in CORE_BUNDLE")
    return load_bundle(REAL_BUNDLE)


@pytest.fixture(scope="module", params=["random", "trained"])
def real_model(request, real_bundle, tmp_path_factory):
    """A model with a short context, and its tokenizer."""
    if request.param == "trained":
        return train_rung(tmp_path_factory.mktemp("rung"), texts_of(real_bundle, 200), context=64, vocab_size=800)
    tokenizer = train_tokenizer(texts_of(real_bundle, 40), vocab_size=800)
    return tiny_gpt2(len(tokenizer), 64), tokenizer


@pytest.mark.parametrize("max_per_task", [8, pytest.param(MORE_EXAMPLES, marks=pytest.mark.slow, id="more")])
def test_every_answer_is_the_reference_s_on_the_real_tasks(real_bundle, real_model, max_per_task):
    model, tokenizer = real_model
    for task in real_bundle.tasks:
        assert_agrees(model, tokenizer, REAL_BUNDLE, task, max_per_task)


# ---------------------------------------------------------------------------------------------------------------------
# The result


def test_the_score_is_the_mean_of_the_centred_accuracies(toy):
    model, tokenizer, bundle_dir = toy
    result = evaluate_core(model, tokenizer, bundle_dir, progress=False)
    centred, variances = [], []
    for task, shots, baseline in zip(result.tasks, [3, 2, 1, 3], [0.25, 0.403, 0.5, 0.0], strict=True):
        answers = [a for a, _, _ in reference_answers(model, tokenizer, bundle_dir, task.label, 24)]
        accuracy = sum(answers) / 24
        assert (task.examples, task.shots, task.baseline) == (24, shots, pytest.approx(baseline))
        assert task.accuracy == accuracy
        assert task.standard_error == pytest.approx((accuracy * (1 - accuracy) / 24) ** 0.5)
        assert task.centred == pytest.approx((accuracy - baseline) / (1 - baseline))
        centred.append(task.centred)
        variances.append(accuracy * (1 - accuracy) / 24 / (1 - baseline) ** 2)
    assert result.score == pytest.approx(sum(centred) / 4)
    assert result.standard_error == pytest.approx(sum(variances) ** 0.5 / 4)
    assert (result.context, result.bos_token, result.absent) == (24, "<|bos|>", ("squad",))


def test_the_result_is_json_and_a_table(toy):
    result = evaluate_core(*toy, tasks=["winograd", "jeopardy"], max_per_task=6, progress=False)
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()
    assert result.to_dict()["tasks"][0]["label"] == "winograd"
    lines = result.table().split("\n")
    assert lines[0].split() == ["task", "shots", "examples", "accuracy", "centred", "truncated", "ties"]
    assert [line.split()[0] for line in lines[1:3]] == ["winograd", "jeopardy"]
    assert lines[3] == f"CORE (2 of 22 tasks): {result.score:.4f} ± {result.standard_error:.4f}"
    assert lines[4] == "no data for: squad"


@pytest.mark.parametrize(
    ("present", "name"),
    [
        (CORE_TASKS, "CORE"),
        (CORE_TASKS[4:], "CORE (18 of 22 tasks)"),
        ([*CORE_TASKS, "mine"], "CORE (22 of 22 tasks, 1 other)"),
    ],
)
def test_only_all_22_tasks_are_called_core(tmp_path, present, name):
    tasks = {label: ("language_modeling", 0, None, 0, TEXTS[:1]) for label in present}
    absent = [label for label in CORE_TASKS if label not in present]
    bundle_dir = write_bundle(tmp_path, tasks, absent)
    result = evaluate_core(bigram_model({}), word_tokenizer(VOCABULARY), bundle_dir, progress=False)
    assert result.name == name
    assert result.absent == tuple(absent)
    assert result.table().split("\n")[len(present) + 1].startswith(f"{name}: ")


def test_a_subsample_smaller_than_the_shots_shows_what_it_has(toy, caplog):
    result = evaluate_core(*toy, tasks=["arc_easy"], max_per_task=2, progress=False)
    assert (result.tasks[0].shots, result.tasks[0].examples, result.max_per_task) == (1, 2, 2)
    assert "arc_easy: 2 examples leave 1 to show, not 3" in caplog.text


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_meanwhile_and_the_mode_comes_back(toy, training):
    model, tokenizer, bundle_dir = toy
    model.train(training)
    (task,) = load_bundle(bundle_dir).select(["arc_easy"])
    assert answer_task(model, tokenizer, task) == answer_task(model, tokenizer, task)
    assert model.training == training


def test_what_is_out_of_range_is_refused(toy):
    with pytest.raises(ValueError, match="batch_size is 0; give 1 or more"):
        evaluate_core(*toy, batch_size=0)
    with pytest.raises(ValueError, match="max_per_task is -3; give 1 or more, or leave it out"):
        evaluate_core(*toy, max_per_task=-3, progress=False)


def test_the_bar_counts_options_on_stderr(toy, capsys):
    evaluate_core(*toy, tasks=["commonsense_qa"])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "commonsense_qa: 100%" in captured.err
    assert "96/96" in captured.err


# ---------------------------------------------------------------------------------------------------------------------
# Resumption and processes


def test_finished_tasks_are_not_evaluated_again(toy, tmp_path, monkeypatch):
    model, tokenizer, bundle_dir = toy
    file = tmp_path / "out" / "core.json"
    asked, power_cut = [], [KeyboardInterrupt]

    def interrupted(model, tokenizer, task, **options):
        asked.append(task.label)
        if power_cut and task.label == "winograd":
            raise power_cut.pop()
        return answer_task(model, tokenizer, task, **options)

    monkeypatch.setattr(core, "answer_task", interrupted)
    options = {"progress": False, "resume_file": file}
    with pytest.raises(KeyboardInterrupt):
        evaluate_core(model, tokenizer, bundle_dir, **options)
    assert set(json.loads(file.read_text())["tasks"]) == {"arc_easy", "commonsense_qa"}
    resumed = evaluate_core(model, tokenizer, bundle_dir, **options)
    assert asked == ["arc_easy", "commonsense_qa", "winograd", "winograd", "jeopardy"]
    assert resumed == evaluate_core(model, tokenizer, bundle_dir, progress=False)

    def asked_again(model=model, tokenizer=tokenizer, **other):
        asked.clear()
        evaluate_core(model, tokenizer, bundle_dir, **options | other)
        return len(asked)

    assert asked_again() == 0
    assert asked_again(batch_size=3) == 0
    assert asked_again(max_per_task=5) == 4
    assert asked_again() == 4
    (bundle_dir / "eval_data/schema/winograd.jsonl").open("a").write("\n")
    assert asked_again() == 1
    assert asked_again(tokenizer=train_tokenizer(["a", "b"])) == 4
    assert asked_again() == 4
    model.transformer.h[0].mlp.c_fc.bias.data[0] += 1
    assert asked_again() == 4
    model.config.activation_function = "relu"
    assert asked_again() == 4


def test_a_file_without_tasks_is_refused(toy, tmp_path):
    file = tmp_path / "core.json"
    file.write_text('{"score": 1}')
    with pytest.raises(ValueError, match='core.json: has no "tasks" table; delete it, or name another file'):
        evaluate_core(*toy, resume_file=file)


def test_a_second_evaluation_keeps_off_the_file(toy, tmp_path, monkeypatch):
    file = tmp_path / "core.json"
    refused = []

    def beside(model, tokenizer, task, **options):
        if not refused:
            with pytest.raises(
                ValueError, match=r"core\.json: another evaluation is working with this file; wait"
            ) as error:
                evaluate_core(*toy, tasks=["winograd"], progress=False, resume_file=file)
            refused.append(error)
        return answer_task(model, tokenizer, task, **options)

    monkeypatch.setattr(core, "answer_task", beside)
    evaluate_core(*toy, tasks=["arc_easy", "jeopardy"], progress=False, resume_file=file)
    assert refused
    assert set(json.loads(file.read_text())["tasks"]) == {"arc_easy", "jeopardy"}
    evaluate_core(*toy, tasks=["winograd"], progress=False, resume_file=file)  # the lock went with the first
    assert set(json.loads(file.read_text())["tasks"]) == {"arc_easy", "jeopardy", "winograd"}


SCRIPT = """
import sys
from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer
from hf_progressive.evaluation.core.evaluate import evaluate_core
from hf_progressive.storage import write_json

state = PartialState(cpu=True)
assert state.num_processes == 2
folder = sys.argv[1]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
result = evaluate_core(model, tokenizer, sys.argv[2], resume_file=folder + "/finished.json")
assert result == evaluate_core(model, tokenizer, sys.argv[2], resume_file=folder + "/finished.json")
write_json(f"{folder}/result-{state.process_index}.json", result.to_dict())
state.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(toy, tmp_path):
    model, tokenizer, bundle_dir = toy
    expected = evaluate_core(model, tokenizer, bundle_dir, progress=False).to_dict()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes=2",
        "--num_machines=1",
    ]
    launch += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    subprocess.run([*launch, script, tmp_path / "model", bundle_dir], check=True, timeout=600)
    for process in range(2):
        assert json.loads((tmp_path / f"model/result-{process}.json").read_text()) == expected
    assert len(json.loads((tmp_path / "model/finished.json").read_text())["tasks"]) == 4
