"""The SLURM script, with stand-ins for the commands a cluster has."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

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


def start(environment):
    script = ROOT / "examples" / "ladder_slurm.sbatch"
    command = ["bash", str(script), "configs/ladder_tiny.yaml", "/shared/run"]
    return subprocess.Popen(command, cwd=ROOT, env=environment)


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
