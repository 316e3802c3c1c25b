"""A whole ladder that publishes its rungs while it trains, under `accelerate launch` with two processes."""

import json
import shutil
import sys
from pathlib import Path

import hub_fixtures
import pytest
from hub_client import HubClient
from hub_fixtures import TOKEN
from hub_server import HubServer
from huggingface_hub import constants

from hf_progressive.publishing import prepare_publication

server, client = hub_fixtures.server, hub_fixtures.client

NAMES = ["l2w32", "l3w32", "l3w48"]

PUBLISH = ["repo_id=org/{name}", "private=true", "license=apache-2.0", "collection=Tiny ladder"]

# On a machine without a GPU, Accelerate forms a group of processes only if it is told first that they use the CPU.
PROGRAM = """
import runpy
from accelerate import PartialState
assert PartialState(cpu=True).num_processes == 2
runpy.run_path("examples/run_ladder.py", run_name="__main__")
"""


@pytest.mark.slow
def test_ladder_publishes_while_it_trains(server: HubServer, client: HubClient, tmp_path: Path) -> None:
    program, run = tmp_path / "train.py", tmp_path / "run"
    program.write_text(PROGRAM)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    launch += [str(program), "--config", "ladder_tiny", "--output-dir", str(run)]
    launch += [f"publish.{option}" for option in PUBLISH]
    # Once the Hub is away for a while: the run goes on, and what was missed is published with the next record.
    server.inject("status", "POST", "/create$", times=1, status=403)
    result = client.run(*launch, OMP_NUM_THREADS="1")
    assert "Training is not affected; finish it with: hf-progressive publish" in result.stderr
    assert json.loads((run / "ladder.json").read_text())["environment"]["processes"] == 2
    for name in NAMES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "ENDPOINT", server.endpoint)
            publication = prepare_publication(run / name / "final", f"org/{name}", license="apache-2.0")
        held = server.storage.read_commit(server.storage.head(f"org/{name}"))["files"]
        for path, content in server.storage.files(f"org/{name}").items():
            assert str(run).encode() not in content, f"{path} tells where the run lay"
        assert {path: entry["sha256"] for path, entry in held.items() if path != ".gitattributes"} == {
            path: file.sha256 for path, file in publication.files.items()
        }
        assert server.storage.repository(f"org/{name}")["private"]
        assert publication.tag in server.storage.repository(f"org/{name}")["tags"]
    cold = json.loads(server.storage.files("org/l3w48")["rung.json"])["cold"]  # the last record
    bits = [point["bits_per_byte"] for point in cold["curve"]]
    assert bits == sorted(bits, reverse=True), "the baseline was thrown off its course"
    (collection,) = server.storage.collections()
    assert [item["id"] for item in collection["items"]] == [f"org/{name}" for name in NAMES]
    assert TOKEN not in result.stdout + result.stderr
    assert not [path for path in run.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]

    # A finished run that is started again publishes nothing new; one that lost its rungs' folders can start from them.
    heads = {name: server.storage.head(f"org/{name}") for name in NAMES}
    client.publish_family(run, "org/{name}", "--private", "--license", "apache-2.0", "--collection", "Tiny ladder")
    assert {name: server.storage.head(f"org/{name}") for name in NAMES} == heads
    shutil.rmtree(run)
    program = """
import sys
from hf_progressive import grow_checkpoint
from hf_progressive.hub import fetch_rung
assert grow_checkpoint(fetch_rung("org/l3w48"), sys.argv[1], {"n_layer": 4}).verification.preserved
"""
    client.python(program, str(run))
