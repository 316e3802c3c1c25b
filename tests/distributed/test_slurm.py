"""The SLURM script, with stand-ins for the commands a cluster has; the last test launches with the real Accelerate."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ladder_fixtures import RUNGS, ladder_mapping, write_ladder

from hf_progressive.storage import read_json

ROOT = Path(__file__).parents[2]

STAND_INS = {
    # two nodes, each of which runs the command with its own SLURM_NODEID
    "srun": "trap 'kill -TERM $(jobs -p)' TERM; for node in 0 1; do SLURM_NODEID=$node \"$@\" & done; wait; wait",
    # it prints in two parts, so that a reader that leaves after the first ends it with SIGPIPE
    "scontrol": 'if [ "$1" = show ]; then echo alpha; sleep 0.3; echo beta; else echo "scontrol $*" >> "$LOG"; fi',
    "accelerate": 'sleep ${LASTS:-0} & trap "kill \$!; echo told >> $LOG; exit 143" TERM; '
    'echo "accelerate $*" >> "$LOG"; wait',
}


@pytest.fixture
def cluster(tmp_path):
    """Stand-ins first on the path, and what they log."""
    for name, body in STAND_INS.items():
        command = tmp_path / name
        command.write_text(f"#!/bin/bash\n{body}\n")
        command.chmod(0o755)
    log = tmp_path / "log"
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log), "SLURM_JOB_ID": "7", "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_NODELIST": "alpha,beta",
    }  # fmt: skip
    return log, environment


def start(environment, config="configs/ladder_tiny.yaml", run="/shared/run"):
    script = ROOT / "examples" / "ladder_slurm.sbatch"
    return subprocess.Popen(["bash", str(script), str(config), str(run)], cwd=ROOT, env=environment)


def test_each_node_launches_its_own_part(cluster):
    log, environment = cluster
    assert start(environment).wait(timeout=60) == 0
    lines = sorted(log.read_text().splitlines())
    expected = (
        "accelerate launch --machine_rank {node} --config_file configs/accelerate/multi_node.yaml --num_machines 2 "
        "--num_processes 8 --main_process_ip alpha --main_process_port 29500 "
        "examples/run_ladder.py --config configs/ladder_tiny.yaml --output-dir /shared/run"
    )
    assert lines == [expected.format(node=node) for node in (0, 1)]


def test_when_time_is_up_it_stops_and_queues_itself_again(cluster):
    log, environment = cluster
    job = start(environment | {"LASTS": "60"})
    for _ in range(600):
        if log.exists() and len(log.read_text().splitlines()) == 2:
            break
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=60) == 0
    assert log.read_text().splitlines()[2:] == ["told", "told", "scontrol requeue 7"]


@pytest.fixture
def one_node(cluster, tmp_path):
    """A node of two processes on this machine, with the real launcher."""
    log, environment = cluster
    commands = {
        "srun": "trap 'kill -TERM $node' TERM; SLURM_NODEID=0 \"$@\" & node=$!; wait $node; code=$?; "
        'if kill -0 $node; then wait $node; code=$?; fi 2> /dev/null; echo "launch $code" >> $LOG',
        "accelerate": f'exec {sys.executable} -m accelerate.commands.accelerate_cli "$@"',
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
    shipped = (ROOT / "configs" / "accelerate" / "multi_node.yaml").read_text()
    (tmp_path / "cpu.yaml").write_text(shipped.replace("mixed_precision: bf16", 'mixed_precision: "no"'))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return log, environment | {
        "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2", "ACCELERATE_CONFIG": str(tmp_path / "cpu.yaml"),
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "MASTER_PORT": str(port), "MASTER_ADDR": "127.0.0.1",
    }  # fmt: skip


def final_weights(run):
    return [(run / rung["name"] / "final" / "model.safetensors").read_bytes() for rung in RUNGS[:2]]


@pytest.mark.slow
def test_a_job_that_is_requeued_ends_with_the_same_bits(one_node, tmp_path):
    """Two processes are told in the second rung: a checkpoint of the step they stopped at, code 143, and on."""
    log, environment = one_node
    mapping = ladder_mapping(tmp_path / "sums.jsonl")
    training = mapping["training"] | {"tokens_per_parameter": 3.0}
    config = write_ladder(tmp_path, rungs=RUNGS[:2], cold="none", training=training)
    assert start(environment, config, tmp_path / "whole").wait(timeout=300) == 0

    run, checkpoints = tmp_path / "run", tmp_path / "run" / RUNGS[1]["name"] / "checkpoints"
    job = start(environment, config, run)
    for _ in range(3000):
        if list(checkpoints.glob("checkpoint-*")):
            break
        assert job.poll() is None
        time.sleep(0.05)
    due = {path.name for path in checkpoints.glob("checkpoint-*")}
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=60) == 0
    assert log.read_text().splitlines() == ["launch 0", "launch 143", "scontrol requeue 7"]
    (left,) = {path.name for path in checkpoints.glob("checkpoint-*")} - due
    state = read_json(checkpoints / left / "trainer_state.json")
    assert left == f"checkpoint-{state['global_step']}"
    assert state["global_step"] not in (58, 116, 174), "that one was due"
    assert (checkpoints / left / "phi" / "penalty.json").samefile(checkpoints / "_phi" / "penalty.json")
    assert not [path for path in run.rglob("*") if path.suffix == ".tmp" or path.name == ".saving"]

    assert start(environment, config, run).wait(timeout=300) == 0
    assert final_weights(run) == final_weights(tmp_path / "whole")
