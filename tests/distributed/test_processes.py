"""What one process does first may take longer than any collective waits, and its failure is the others' too."""

import datetime
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch.distributed
from accelerate import PartialState
from environment import user_environment

from hf_progressive import cli
from hf_progressive.config import load_ladder_config
from hf_progressive.distributed.processes import MainProcessFailedError, main_process_first, processes_not_started
from hf_progressive.ladder import rung_loop, steps
from hf_progressive.storage import durable
from hf_progressive.training.checkpoints import check_checkpoint


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def two_processes(work, folder, *, timeout):
    """Run `work(state, folder)` in two gloo processes whose collectives wait `timeout` seconds; return exit codes."""
    port = str(free_port())

    def process(rank):
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
        os.environ.update(MASTER_PORT=port)
        PartialState._reset_state()
        state = PartialState(cpu=True, timeout=datetime.timedelta(seconds=timeout))
        assert state.num_processes == 2
        work(state, folder)
        torch.distributed.destroy_process_group()

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=process, args=(rank,)) for rank in range(2)]
    for one in processes:
        one.start()
    for one in processes:
        one.join(timeout=400)
    return [one.exitcode for one in processes]


def test_the_others_wait_longer_than_a_collective_would(tmp_path):
    def work(state, folder):
        for turn in range(2):
            with main_process_first(state):
                if state.is_main_process:
                    time.sleep(5)
                    (folder / f"{turn}").touch()
                assert (folder / f"{turn}").exists()
        state.wait_for_everyone()

    assert two_processes(work, tmp_path, timeout=3) == [0, 0]


def test_a_failure_of_the_first_is_told_to_the_others(tmp_path):
    def work(state, folder):
        def read():
            with main_process_first(state):
                assert state.is_main_process
                raise ValueError("no such corpus")

        with pytest.raises(ValueError, match="no such corpus") as caught:
            read()
        (folder / f"{state.process_index}").write_text(type(caught.value).__name__)
        state.wait_for_everyone()

    assert two_processes(work, tmp_path, timeout=60) == [0, 0]
    assert [(tmp_path / str(i)).read_text() for i in range(2)] == ["ValueError", MainProcessFailedError.__name__]


def test_the_death_of_the_first_ends_the_others_wait(tmp_path):
    def work(state, folder):
        def die():
            state.wait_for_everyone()  # or it would be gone before the other has met it
            with main_process_first(state):
                os.kill(os.getpid(), signal.SIGKILL)

        with pytest.raises(MainProcessFailedError, match="the first process is gone"):
            die()

    assert two_processes(work, tmp_path, timeout=600) == [-signal.SIGKILL, 0]


def test_one_process_reads_a_checkpoint_s_files_and_all_refuse_damage(tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint-1"
    with durable.atomic_folder(checkpoint) as temporary:
        (temporary / "weights").write_bytes(b"sound")

    def work(state, folder):
        digest, read = durable.sha256_file, []

        def slow_digest(path):
            read.append(path)
            time.sleep(5)  # longer than a collective waits
            return digest(path)

        monkeypatch.setattr(durable, "sha256_file", slow_digest)
        check_checkpoint(checkpoint, None, reads=state.is_main_process)
        assert len(read) == state.is_main_process
        state.wait_for_everyone()  # the other compares sizes once the first has read
        if state.is_main_process:
            (checkpoint / "weights").write_bytes(b"spoil")
        state.wait_for_everyone()
        with pytest.raises(ValueError, match="weights: its SHA-256 differs from the manifest's; the file is damaged"):
            check_checkpoint(checkpoint, None, reads=state.is_main_process)
        state.wait_for_everyone()

    assert two_processes(work, tmp_path, timeout=3) == [0, 0]


@pytest.mark.slow
def test_a_ladder_s_long_work_outlasts_its_collectives(tmp_path, monkeypatch):
    limit = 10

    def slowly(module, name):
        function = getattr(module, name)

        def slow(*arguments, **options):
            if os.environ["RANK"] == "0":
                time.sleep(limit + 3)
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, slow)

    slowly(rung_loop, "prepare_corpus")
    slowly(steps, "grow_checkpoint")
    config = load_ladder_config(
        "ladder_tiny",
        ["rungs=[{name: a, n_layer: 1, n_embd: 32, n_head: 2}, {name: b, n_layer: 2, n_embd: 32, n_head: 2}]",
         "cold=none", "training.tokens_per_parameter=0.1"],
    )  # fmt: skip

    def work(state, folder):
        results = rung_loop.run_ladder(config, folder / "run", on_record=lambda _: time.sleep(limit + 3))
        (folder / f"{state.process_index}").write_text(json.dumps([result.summary()["tokens"] for result in results]))

    assert two_processes(work, tmp_path, timeout=limit) == [0, 0]
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()


ONE_OF_SEVERAL = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
"""What Accelerate's launcher tells the one process that it starts where several were asked for."""


def test_processes_that_were_not_started_are_said(capsys, monkeypatch):
    assert processes_not_started({}) is None
    assert processes_not_started({"ACCELERATE_MIXED_PRECISION": "no"}) is None  # one was asked for
    assert processes_not_started({"MASTER_ADDR": "10.0.0.1"}) is None  # no launcher of Accelerate's
    for told in ("RANK", "OMPI_COMM_WORLD_SIZE"):
        assert processes_not_started(ONE_OF_SEVERAL | {told: "1"}) is None
    said = processes_not_started(ONE_OF_SEVERAL)
    assert said.startswith("one process: `accelerate launch` starts no more with --cpu or distributed_type: NO")

    def stopped(*args, **options):
        raise ValueError("stopped")

    monkeypatch.setattr(rung_loop, "run_ladder", stopped)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ONE_OF_SEVERAL.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["ladder", "ladder_tiny"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == said


@pytest.mark.slow
def test_the_file_for_one_cpu_process_starts_two_when_told_so(request, tmp_path):
    script = tmp_path / "who.py"
    script.write_text(
        "import os\nfrom hf_progressive.distributed.processes import current_processes, processes_not_started\n"
        "said = (current_processes().num_processes, processes_not_started(os.environ) is not None)\n"
        "os.write(1, b'%d %r\\n' % said)\n"  # in one piece: print's words mix with another process's
    )
    shipped = request.config.rootpath / "configs" / "accelerate" / "cpu.yaml"
    environment = user_environment() | {"CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(shipped)]
    for words, printed in (([], ["1 True"]), (["--multi_gpu", "--main_process_port", "0"], ["2 False"] * 2)):
        command = [*launch, "--num_processes", "2", *words, str(script)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split("\n")[:-1] == printed
