"""A ladder on two hosts: network namespaces with a cable between them, a launcher on each, and one that is lost."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from interrupted_runs import ROOT
from ladder_fixtures import NAMES, RUNGS, ladder_mapping, write_ladder

HOSTS = {"alpha": "10.213.7.1", "beta": "10.213.7.2"}
LONGEST_END = 60.0
"""Seconds after which the other host's processes have ended."""


def ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ip", *words], capture_output=True, check=check)


def own_name(host: str) -> str:
    return f"{host}-{os.getpid()}"


@pytest.fixture
def hosts() -> Iterator[None]:
    """Two hosts and the cable between them."""
    one, two = map(own_name, HOSTS)
    try:
        made = [ip("netns", "add", name, check=False) for name in (one, two)]
    except FileNotFoundError:
        pytest.skip("network namespaces need the command `ip`")
    failed = [done.stderr.decode().strip() for done in made if done.returncode]
    try:
        if failed:
            pytest.skip(f"network namespaces need root: {failed[0]}")
        ip("-n", one, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", two)
        for name, address in zip((one, two), HOSTS.values(), strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield
    finally:
        for name in (one, two):
            ip("netns", "delete", name, check=False)


def launch(host: str, config: Path, run: Path) -> "subprocess.Popen[str]":
    """Start a host's part of the ladder, as somebody would there."""
    # Its name is its address, so that it can be resolved.
    named = ["unshare", "--uts", "sh", "-c", f'hostname {HOSTS[host]}; exec "$@"', "-"]
    command = ["ip", "netns", "exec", own_name(host), *named]
    command += [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{HOSTS['alpha']}:29400", "--rdzv-id", "ladder"]
    command += ["--local-addr", HOSTS[host]]
    command += [str(ROOT / "examples" / "run_ladder.py"), "--config", str(config), "--output-dir", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "cable"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


@contextlib.contextmanager
def ladder(config: Path, run: Path) -> Iterator[dict[str, "subprocess.Popen[str]"]]:
    processes = {host: launch(host, config, run) for host in HOSTS}
    try:
        yield processes
    finally:
        for host in HOSTS:  # launchers give their workers sessions of their own
            for process in ip("netns", "pids", own_name(host)).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
        for one in processes.values():
            one.wait()


@pytest.mark.slow
def test_a_lost_host_ends_the_other_and_the_restart_ends_with_the_same_bits(hosts: None, tmp_path: Path) -> None:
    training = ladder_mapping(tmp_path)["training"] | {"tokens_per_parameter": 2.0, "evaluations": 1, "checkpoints": 8}
    config = write_ladder(tmp_path, rungs=RUNGS[:2], cold="none", training=training)
    run, whole = tmp_path / "run", tmp_path / "whole"
    with ladder(config, run) as processes:
        deadline = time.monotonic() + 300
        while not list((run / NAMES[1] / "checkpoints").glob("checkpoint-*")):
            assert all(one.poll() is None for one in processes.values()), processes["alpha"].stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        ip("-n", own_name("beta"), "link", "set", "cable", "down")
        lost = time.monotonic()
        _, told = processes["alpha"].communicate(timeout=2 * LONGEST_END)
        assert time.monotonic() - lost < LONGEST_END
        lines = [line for line in told.splitlines() if line.startswith("hf-progressive")]
        assert len(lines) == 1, told
        assert (
            f"error: process 1 on {HOSTS['beta']} is gone: it was killed, or its host or the network failed"
            in lines[0]
        )
    ip("-n", own_name("beta"), "link", "set", "cable", "up")
    assert not (run / NAMES[1] / "final").exists()
    for folder in (run, whole):
        with ladder(config, folder) as processes:
            for one in processes.values():
                _, told = one.communicate(timeout=300)
                assert one.returncode == 0, told
    for name in NAMES[:2]:  # a log's mean begins anew with the restart
        ours, theirs = (folder / name / "final" / "model.safetensors" for folder in (run, whole))
        assert ours.read_bytes() == theirs.read_bytes()
