"""What is fetched comes whole, after a failure that passes too; what cannot be fetched is said in one line."""

from pathlib import Path

import hub_fixtures
from hub_client import HubClient
from hub_server import HubServer

server, client = hub_fixtures.server, hub_fixtures.client

PROGRAM = """
from hf_progressive.growth.source import locate_source
from hf_progressive.hub import fetch_files
print((fetch_files("org/d4", ["*.json"]) / "config.json").read_text())
for name in ("org/none", "org/gated", "org/hidden", "./none"):
    try:
        locate_source(name)
    except FileNotFoundError as error:
        print(error)
"""

COUNTED = """
import sys
import datasets.load
asked = []
datasets.load.get_session = lambda: asked.append("counts the download")
datasets.load_dataset("text", data_files=sys.argv[1], split="train")
print(asked)
"""


def test_a_client_asks_no_other_server_than_its_hub(client: HubClient, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a line\n")
    assert client.python(COUNTED, str(tmp_path / "text.txt")).stdout == "[]\n"


def test_a_download_goes_on_after_a_failure_that_passes(server: HubServer, client: HubClient) -> None:
    server.storage.create_repository("org/d4", private=True)
    server.storage.commit("org/d4", {"config.json": b"{}", "notes.txt": b"not asked for"}, "A model")
    fault = server.inject("status", "HEAD", "/resolve/.*/config.json", status=409)
    server.inject("status", "GET", "/org/gated", status=403, headers={"X-Error-Code": "GatedRepo"})
    server.inject("status", "GET", "/org/hidden", status=401, headers={"X-Error-Code": "RepoNotFound"})
    result = client.python(PROGRAM)
    content, missing, gated, hidden, nowhere = result.stdout.splitlines()
    assert content == "{}"
    assert fault.struck == 1
    assert "org/d4: somebody else keeps writing to it; try again later (status 409); trying again in 1 s" in (
        result.stderr
    )
    assert not [path for _, path, _ in server.requests if "notes.txt" in path]
    assert missing.startswith("org/none: there is no such repository or revision, or the token may not see it")
    assert missing.endswith("; and there is no folder org/none here")
    assert gated.startswith("org/gated: the repository is gated; ask for access on its page, and set HF_TOKEN")
    assert hidden.startswith("org/hidden: there is no such repository or revision, or the token may not see it")
    assert nowhere == "./none: no such folder, and no name on the Hub (ORG/NAME)"


def test_a_missing_folder_on_a_machine_without_a_network_is_said_in_one_line(client: HubClient) -> None:
    program = "from hf_progressive.growth.source import locate_source\nlocate_source('org/none')"
    nowhere = "http://127.0.0.1:1"  # where nothing listens
    said = client.python(program, fails=True, HF_ENDPOINT=nowhere).stderr.splitlines()[-1]
    assert said.startswith(
        "FileNotFoundError: org/none: not in the cache, and the Hub could not be asked: the connection"
    )
    assert said.endswith("; and there is no folder org/none here")
