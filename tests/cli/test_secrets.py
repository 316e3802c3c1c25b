"""A planted token is found nowhere: after no command, a failed one too, in no file, output or process title."""

import json
import sys
from pathlib import Path

import hub_fixtures
import pytest
from hub_client import HubClient
from hub_fixtures import TOKEN
from hub_server import HubServer
from ladder_fixtures import RUNGS, write_ladder

server, client = hub_fixtures.server, hub_fixtures.client

PROGRAM = """
import json, os, sys
from pathlib import Path
from hf_progressive import cli
for words in json.load(sys.stdin):
    try:
        code = cli.main(words)
    except SystemExit as error:
        code = error.code
    print("exit", code, *words[:2], flush=True)
    for file in ("cmdline", "comm"):
        assert os.environ["HF_TOKEN"].encode() not in Path("/proc/self", file).read_bytes()
"""


@pytest.mark.slow
def test_a_token_is_found_after_no_command(server: HubServer, client: HubClient, tmp_path: Path) -> None:
    ladder = str(write_ladder(tmp_path, rungs=RUNGS[:2], cold="none"))
    run, final = str(tmp_path / "run"), str(tmp_path / "run" / "l1w16" / "final")
    commands = [
        (0, ["doctor", "--json"]),
        (0, ["plan", ladder, "--json"]),
        (0, ["prepare", ladder, "--output-dir", run]),
        (0, ["ladder", ladder, "--output-dir", run]),
        (0, ["report", run]),
        (0, ["grow", final, str(tmp_path / "grown"), "--set", "n_layer=2"]),
        (0, ["verify", final, str(tmp_path / "grown"), "--json"]),
        (0, ["publish", final, "--repo-id", "org/l1", "--dry-run"]),
        (0, ["publish", final, "--repo-id", "org/l1"]),
        (0, ["grow", "org/l1", str(tmp_path / "fetched"), "--set", "n_layer=2"]),
        (2, ["publish", final, "--repo-id", "other/l1"]),
        (2, ["publish", final, "--repo-id", f"org/{TOKEN}x/y"]),
        (2, ["grow", "org/none", str(tmp_path / "out"), "--set", "n_layer=2"]),
        (2, ["grow", f"org/{TOKEN}", str(tmp_path / "out"), "--set", "n_layer=2"]),
        (2, ["grow", final, str(tmp_path / "out"), "--set", f"n_layer={TOKEN}"]),
        (2, ["ladder", ladder, "--output-dir", str(tmp_path / "other"), "--set", f"name={TOKEN}"]),
        (2, ["ladder", ladder, "--output-dir", run, "--set", f"training.arguments={{hub_token: {TOKEN}}}"]),
        (2, ["plan", ladder, "--set", f"{TOKEN}=1"]),
        (2, ["plan", f"{tmp_path}/{TOKEN}.yaml"]),
        (2, ["study", ladder, "--output-dir", str(tmp_path / "study")]),
        (2, ["core", final, "--bundle", str(tmp_path / "nowhere")]),
        (2, ["report", str(tmp_path / "nowhere")]),
    ]
    # No compiler: in a new TMPDIR the doctor's prepares torch's headers, a third of the test's CPU time, for a sine.
    set_here = {"TMPDIR": str(tmp_path), "HF_DEBUG": "1", "OMP_NUM_THREADS": "1", "CXX": "false"}
    process = client.start(sys.executable, "-c", PROGRAM, **set_here)
    stdout, stderr = process.communicate(json.dumps([words for _, words in commands]), timeout=600)
    assert process.returncode == 0, stderr[-2000:]
    ends = [line.split()[1] for line in stdout.splitlines() if line.startswith("exit ")]
    assert ends == [str(code) for code, _ in commands], stderr[-3000:]
    said = "\n".join(line for line in stdout.splitlines() if not line.startswith("exit "))
    assert TOKEN not in said
    assert TOKEN not in stderr
    searched = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(searched) > 50
    assert not [path for path in searched if TOKEN.encode() in path.read_bytes()]
    assert not [path for path in tmp_path.rglob("*") if TOKEN in path.name]
    assert server.storage.has_repository("org/l1")  # whose storage, another origin, refuses whoever brings a token
