"""lm-evaluation-harness runs on a checkpoint as it is, and agrees with CORE where the two define the same thing.

That is: no shots, nothing longer than the context, and either options of one token each (the harness sums losses,
CORE averages them) or a continuation judged by its arg max. The harness puts a beginning-of-sequence token before a
text only if the tokenizer does so itself and `add_bos_token=True` lets it.
"""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from core_bundle_writer import WORDS, train_tokenizer, varied_tasks, write_bundle
from ladder_fixtures import RUNGS, write_ladder
from test_core import tiny_gpt2
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_progressive.config import load_ladder_config
from hf_progressive.evaluation.core.bundle import load_bundle
from hf_progressive.evaluation.core.evaluate import answer_task, evaluate_core
from hf_progressive.evaluation.core.prompts import draw_examples
from hf_progressive.ladder.rung_loop import run_ladder

lm_eval = pytest.importorskip("lm_eval", reason="the harness is an optional extra")

HARNESS_TASKS = {
    "commonsense_qa": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
    },
    "jeopardy": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{context | trim}}",
        "doc_to_target": "{{' ' + continuation}}",  # for this output type the harness adds no delimiter
    },
}


def harness_task(label, data_file):
    """The harness's own description of one of our tasks."""
    return HARNESS_TASKS[label] | {
        "task": f"core_{label}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(data_file)},
        "test_split": "train",
        "target_delimiter": " ",
        "metric_list": [{"metric": "acc"}],
    }


@pytest.mark.parametrize("label", HARNESS_TASKS)
def test_the_harness_and_core_give_every_example_the_same_answer(tmp_path, label):
    kind, _, _, baseline, items = varied_tasks(40)[label]
    tokenizer = train_tokenizer([" ".join(WORDS), "\nAnswer: A B C D"] * 4)
    model = tiny_gpt2(len(tokenizer), 96)
    if kind == "language_modeling":
        items = [item | {"continuation": "stone"} if index % 2 else item for index, item in enumerate(items)]
        teach(model, tokenizer, [item["context"] + "stone" for item in items])
    bundle_dir = write_bundle(tmp_path / "bundle", {label: (kind, 0, None, baseline, items)})
    model.save_pretrained(tmp_path / "rung")
    tokenizer.save_pretrained(tmp_path / "rung")

    task = harness_task(label, bundle_dir / f"eval_data/{kind}/{label}.jsonl")
    report = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path / "rung"), "dtype": "float32", "add_bos_token": True},
        tasks=[task],
        num_fewshot=0,
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
        task_manager=lm_eval.tasks.TaskManager(include_defaults=False),
    )

    (ours,) = load_bundle(bundle_dir).tasks
    answer_of = dict(zip(draw_examples(ours), answer_task(model, tokenizer, ours), strict=True))
    samples = sorted(report["samples"][task["task"]], key=lambda sample: sample["doc_id"])
    assert [bool(sample["acc"]) for sample in samples] == [answer_of[example].correct for example in ours.examples]
    accuracy = evaluate_core(model, tokenizer, bundle_dir, progress=False).tasks[0].accuracy
    assert report["results"][task["task"]]["acc,none"] == accuracy
    assert 0 < accuracy < 1


@pytest.mark.slow
def test_the_documented_command_evaluates_a_trained_rung(tmp_path):
    path = write_ladder(tmp_path, rungs=RUNGS[:1], cold="none")
    final = run_ladder(load_ladder_config(path), tmp_path / "run")[0].folder
    kind, _, _, baseline, items = varied_tasks()["commonsense_qa"]
    bundle_dir = write_bundle(tmp_path / "bundle", {"commonsense_qa": (kind, 0, None, baseline, items)})
    task = harness_task("commonsense_qa", bundle_dir / f"eval_data/{kind}/commonsense_qa.jsonl")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "commonsense_qa.yaml").write_text(yaml.safe_dump(task))
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args"]
    command += [f"pretrained={final},dtype=float32,add_bos_token=True", "--include_path", str(tmp_path / "tasks")]
    command += ["--tasks", "core_commonsense_qa", "--device", "cpu", "--output_path", str(tmp_path / "out.json")]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    (report,) = tmp_path.rglob("out*.json")
    accuracy = json.loads(report.read_text())["results"]["core_commonsense_qa"]["acc,none"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(final), AutoTokenizer.from_pretrained(final)
    assert accuracy == evaluate_core(model, tokenizer, bundle_dir, progress=False).tasks[0].accuracy


def teach(model, tokenizer, texts):
    """Train until the last word of the texts is the arg max."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for text in texts * 2:
        ids = torch.tensor([tokenizer.encode(text)])
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
