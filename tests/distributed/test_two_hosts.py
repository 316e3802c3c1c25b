"""A ladder on two hosts: network namespaces with a cable between them, a launcher on each, and each of them lost."""

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
LONGEST_END, LONGEST_RUN = 60.0, 600.0
"""Seconds after which the other host's processes have ended, and after which a run is done in any case."""


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


PROGRAM = ROOT / "examples" / "run_ladder.py"

Launchers = dict[str, "subprocess.Popen[bytes]"]
"""By host."""


def launch(host: str, config: Path, run: Path) -> "subprocess.Popen[bytes]":
    """Start a host's part of the ladder, as somebody would there; what it says goes into a file."""
    # Its name is its address, so that it can be resolved.
    named = ["unshare", "--uts", "sh", "-c", f'hostname {HOSTS[host]}; exec "$@"', "-"]
    command = ["ip", "netns", "exec", own_name(host), *named]
    command += [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{HOSTS['alpha']}:29400", "--rdzv-id", "ladder"]
    command += ["--local-addr", HOSTS[host]]
    command += [str(PROGRAM), "--config", str(config), "--output-dir", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "cable"}
    with said(host, config).open("wb") as stderr:
        return subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=stderr
        )


def said(host: str, config: Path) -> Path:
    return config.with_name(f"{host}.txt")


@contextlib.contextmanager
def ladder(config: Path, run: Path) -> Iterator[Launchers]:
    launchers = {host: launch(host, config, run) for host in HOSTS}
    try:
        yield launchers
    finally:
        for host in HOSTS:
            kill_all(host)
        for one in launchers.values():
            one.wait()


def pids(host: str) -> list[int]:
    return list(map(int, ip("netns", "pids", own_name(host)).stdout.split()))


def kill_all(host: str) -> None:
    """End all processes of a host at once; launchers give their workers sessions of their own."""
    for process in pids(host):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def is_training(host: str) -> bool:
    """Tell whether a process other than the launcher runs the ladder on a host."""
    commands = []
    for process in pids(host):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            commands.append(Path(f"/proc/{process}/cmdline").read_text())
    return any(str(PROGRAM) in command and "torch.distributed.run" not in command for command in commands)


def wait_for_checkpoint(launchers: Launchers, config: Path, folder: Path, *, after: int) -> int:
    """Wait for a checkpoint of a later step, and return its step."""
    deadline = time.monotonic() + LONGEST_RUN
    while not (steps := [step for path in folder.glob("checkpoint-*") if (step := int(path.name[11:])) > after]):
        assert all(one.poll() is None for one in launchers.values()), said("alpha", config).read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return max(steps)


def require_end(host: str, config: Path, since: float, *, lost: str) -> None:
    """A host that is left stops training within a minute, and says in one line what is gone."""
    while is_training(host):
        assert time.monotonic() - since < LONGEST_END
        time.sleep(0.2)
    told = said(host, config).read_text()
    lines = [line for line in told.splitlines() if line.startswith("hf-progressive")]
    assert len(lines) == 1, told
    assert f"error: {lost} is gone: it was killed, or its host or the network failed" in lines[0]


@pytest.mark.slow
def test_lost_hosts_end_the_others_and_the_restart_ends_with_the_same_bits(hosts: None, tmp_path: Path) -> None:
    """First the host at which both meet is killed; then their cable is cut, and each takes the other for lost."""
    training = ladder_mapping(tmp_path)["training"] | {"tokens_per_parameter": 2.0, "evaluations": 1, "checkpoints": 8}
    config = write_ladder(tmp_path, rungs=RUNGS[:2], cold="none", training=training)
    run, whole = tmp_path / "run", tmp_path / "whole"
    checkpoints = run / NAMES[1] / "checkpoints"
    with ladder(config, run) as launchers:
        saved = wait_for_checkpoint(launchers, config, checkpoints, after=0)
        kill_all("alpha")
        require_end("beta", config, time.monotonic(), lost="the first process")
        assert launchers["beta"].wait(LONGEST_END) != 0
    with ladder(config, run) as launchers:
        wait_for_checkpoint(launchers, config, checkpoints, after=saved)
        ip("-n", own_name("beta"), "link", "set", "cable", "down")
        cut = time.monotonic()
        require_end("alpha", config, cut, lost=f"process 1 on {HOSTS['beta']}")
        require_end("beta", config, cut, lost="the first process")
        assert launchers["alpha"].wait(LONGEST_END) != 0  # the other's waits for the host at which they met
    ip("-n", own_name("beta"), "link", "set", "cable", "up")
    assert not (run / NAMES[1] / "final").exists()
    for folder in (run, whole):
        with ladder(config, folder) as launchers:
            for host, one in launchers.items():
                assert one.wait(LONGEST_RUN) == 0, said(host, config).read_text()
    for name in NAMES[:2]:  # a log's mean begins anew with the restart
        ours, theirs = (folder / name / "final" / "model.safetensors" for folder in (run, whole))
        assert ours.read_bytes() == theirs.read_bytes()
