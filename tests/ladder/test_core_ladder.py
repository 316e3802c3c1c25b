"""CORE of a ladder's rungs: in their records, reports and cards, and from the command line, alone and in processes."""

import json
import os
import subprocess
import sys

import pytest
from core_bundle_writer import varied_tasks, write_bundle
from ladder_fixtures import RUNGS, write_ladder
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_progressive import cli
from hf_progressive.config import load_ladder_config
from hf_progressive.evaluation.core.evaluate import evaluate_core
from hf_progressive.ladder.rung_loop import run_ladder
from hf_progressive.publishing import prepare_publication
from hf_progressive.report import write_report
from hf_progressive.storage import read_json

NAME = "CORE (4 of 22 tasks)"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A bundle, and the run of a ladder whose configuration names it."""
    folder = tmp_path_factory.mktemp("core")
    bundle = write_bundle(folder / "bundle", varied_tasks(16), absent=["squad"])
    options = {"bundle": str(bundle), "batch_size": 8}
    run_ladder(load_ladder_config(write_ladder(folder, rungs=RUNGS[:2], cold="none", core=options)), folder / "run")
    return bundle, folder / "run"


def test_rungs_carry_core_and_report_and_card_show_it(finished):
    bundle, run = finished
    markdown = write_report(run).markdown.read_text()
    assert "## In-context learning: CORE (4 of 22 tasks)" in markdown
    for rung in RUNGS[:2]:
        final = run / rung["name"] / "final"
        core = read_json(final / "rung.json")["core"]
        model, tokenizer = AutoModelForCausalLM.from_pretrained(final), AutoTokenizer.from_pretrained(final)
        assert core == evaluate_core(model, tokenizer, bundle, progress=False).to_dict()
        assert (core["name"], core["absent"]) == (NAME, ["squad"])
        shown = f"{core['score']:.3f} ± {core['standard_error']:.3f}".replace("-", "−")
        assert shown in markdown
        card = prepare_publication(final, f"org/{rung['name']}").card
        assert f"{NAME}: {core['score']:.4f} ± {core['standard_error']:.4f}".replace("-", "−") in card
        assert f"name: {NAME}" in card  # in the metadata as well
        for task in core["tasks"]:
            assert f"{task['accuracy']:.4f} ± {task['standard_error']:.4f}" in card


def test_the_command_line_prints_what_the_record_holds(finished, capsys):
    bundle, run = finished
    final = run / RUNGS[1]["name"] / "final"
    assert cli.main(["core", str(final), "--bundle", str(bundle), "--json"]) == cli.EXIT_DONE
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == read_json(final / "rung.json")["core"]


@pytest.mark.slow
def test_two_processes_of_the_command_print_what_the_record_holds(finished):
    bundle, run = finished
    final = run / RUNGS[1]["name"] / "final"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["--module", "hf_progressive", "core", str(final), "--bundle", str(bundle), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=600)
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("{")]
    assert json.loads(line) == read_json(final / "rung.json")["core"]
