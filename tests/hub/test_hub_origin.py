"""A ladder that begins with a published rung: fetched at a pinned revision, once, and gone on from in its own name."""

import json
import shutil
import signal
import sys
from pathlib import Path

import hub_fixtures
import pytest
from hub_client import HubClient, wait_until
from hub_family import assert_same_tensors
from hub_fixtures import TOKEN
from hub_server import HubServer
from huggingface_hub import ModelCard
from ladder_fixtures import RUNGS, write_ladder

from hf_progressive.config import load_ladder_config
from hf_progressive.ladder.rung_loop import run_ladder
from hf_progressive.storage import check_manifest, read_json

COMMAND = str(Path(sys.executable).parent / "hf-progressive")
FILES = ("model.safetensors", "phi/fisher.safetensors", "phi/subspace.safetensors")

server, client = hub_fixtures.server, hub_fixtures.client


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rungs, beside its configuration."""
    folder = tmp_path_factory.mktemp("parents")
    run_ladder(load_ladder_config(write_ladder(folder, rungs=RUNGS[:2], cold="none")), folder / "run")
    return folder


@pytest.fixture
def published(parents: Path, server: HubServer, client: HubClient) -> tuple[HubServer, str]:
    """A Hub with the second rung, and its commit; a later commit there is something else."""
    with client.publisher() as publisher:
        publisher.publish(parents / "run" / "l2w16" / "final", "org/l2w16")
    commit = server.storage.head("org/l2w16")
    server.storage.commit("org/l2w16", {"model.safetensors": b"damaged", "config.json": b"{}"}, "A mistake")
    return server, commit


def arguments(parents: Path, run: Path, revision: str | None, *options: str) -> list[str]:
    first = {"name": "l2w16", "source": "org/l2w16", "revision": revision}
    settings = [f"rungs={[first, RUNGS[2]]}".replace("None", "null"), "cold=none", *options]
    return [str(parents / "ladder.yaml"), "--output-dir", str(run), "--json", "--set", *settings]


@pytest.mark.slow
def test_a_ladder_goes_on_from_a_published_rung(
    parents: Path, published: tuple[HubServer, str], client: HubClient, tmp_path: Path
) -> None:
    server, commit = published
    configuration, *_, settings = arguments(parents, tmp_path, commit)[0], arguments(parents, tmp_path, commit)[5:]
    plan = client.run(COMMAND, "plan", configuration, "--gpus", "1", "--json", "--set", *settings)
    origin = json.loads(plan.stdout.splitlines()[-1])["rungs"][0]["origin"]
    parent = read_json(parents / "run" / "l2w16" / "final" / "rung.json")
    spent = sum(parent["flops"][key] for key in ("train", "fisher", "subspace", "inherited"))
    assert (origin["name"], origin["commit"], origin["flops"]) == ("org/l2w16", commit, spent)
    asked = [path for _, path, _ in server.requests]
    assert f"/org/l2w16/resolve/{commit}/config.json" in asked
    assert f"/org/l2w16/resolve/{commit}/model.safetensors" not in asked  # a plan takes no weights

    options = ["publish.repo_id=org/next-{name}", "publish.collection=Next"]
    result = client.run(COMMAND, "ladder", *arguments(parents, tmp_path / "run", commit, *options))
    assert f"l2w16 is org/l2w16 at {commit[:12]}, which is taken over and not trained" in result.stderr
    final = tmp_path / "run" / "l2w16" / "final"
    check_manifest(final)
    for name in FILES:
        assert_same_tensors(final / name, parents / "run" / "l2w16" / "final" / name)
    assert not [path for path in final.rglob("*") if path.is_symlink()]
    assert {path.name for path in final.iterdir()} & {"README.md", "plots", ".eval_results"} == set()
    child = read_json(tmp_path / "run" / "l2w24" / "final" / "rung.json")
    assert child["flops"]["inherited"] == spent
    assert child["flops"]["fisher"] == parent["estimates"]["fisher"]["flops"]
    assert child["data"]["first_block"] == parent["data"]["first_block"] + parent["data"]["blocks"]
    assert child["max_abs_logit_diff"] <= 1e-5 * child["max_abs_logit"]

    # The child is published and says where it comes from; the parent stays where it was.
    assert server.storage.head("org/l2w16") != commit
    assert not server.storage.has_repository("org/next-l2w16")
    card = ModelCard(server.storage.files("org/next-l2w24")["README.md"].decode())
    assert card.data.base_model == "org/l2w16"
    assert f"[l2w16]({server.endpoint}/org/l2w16)" in card.text
    (collection,) = server.storage.collections()
    assert [item["id"] for item in collection["items"]] == ["org/l2w16", "org/next-l2w24"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]

    # From the cache alone, it comes out the same.
    asked = len(server.requests)
    client.run(COMMAND, "ladder", *arguments(parents, tmp_path / "again", commit), HF_HUB_OFFLINE="1")
    assert len(server.requests) == asked
    for name in ("l2w16", "l2w24"):
        for file in FILES:
            assert_same_tensors(*(tmp_path / run / name / "final" / file for run in ("run", "again")))


def test_what_cannot_be_fetched_is_said_in_one_line(
    parents: Path, published: tuple[HubServer, str], client: HubClient, tmp_path: Path
) -> None:
    server, commit = published
    cases = [
        (None, {}, "rung l2w16: org/l2w16: no such folder here, and a source on the Hub must be pinned"),
        ("v9", {}, "rung l2w16: org/l2w16 at v9: there is no such repository or revision, or the token may not see"),
        ("0" * 40, {}, f"rung l2w16: org/l2w16 at {'0' * 40}: there is no such repository or revision"),
        (commit, {"HF_HUB_OFFLINE": "1"}, f"rung l2w16: org/l2w16 at {commit}: not in the cache, and the Hub could"),
    ]
    program = """
import json, sys
from hf_progressive import cli
print([cli.main(words) for words in json.loads(sys.argv[1])])
"""
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        chosen = [case for case in cases if case[1] == environment]
        commands = [["ladder", *arguments(parents, tmp_path / "run", revision)] for revision, _, _ in chosen]
        result = client.python(program, json.dumps(commands), **environment)
        assert result.stdout == f"{[2] * len(chosen)}\n"
        lines = [line for line in result.stderr.splitlines() if line.startswith("hf-progressive: error: ")]
        assert len(lines) == len(chosen)
        for line, (_, _, message) in zip(lines, chosen, strict=True):
            assert message in line
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(
    parents: Path, published: tuple[HubServer, str], client: HubClient, tmp_path: Path
) -> None:
    server, commit = published
    run, home = tmp_path / "run", tmp_path / "home"
    command = (COMMAND, "ladder", *arguments(parents, run, commit))
    stalled = server.inject("slow", "GET", "/storage/", times=9, seconds=60)
    final, checkpoints = run / "l2w16" / "final", run / "l2w24" / "checkpoints"
    for reached in (lambda: stalled.struck, final.exists, lambda: list(checkpoints.glob("checkpoint-*"))):
        process = client.start(*command)
        wait_until(reached, seconds=240)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        server.faults.clear()
    assert not (run / "l2w24" / "final").exists()
    # By now nothing of the Hub is needed any more.
    shutil.rmtree(home)
    client.run(*command, HF_HUB_OFFLINE="1")
    client.run(COMMAND, "ladder", *arguments(parents, tmp_path / "whole", commit))
    for name in ("l2w16", "l2w24"):
        for file in FILES:
            assert_same_tensors(*(folder / name / "final" / file for folder in (run, tmp_path / "whole")))
