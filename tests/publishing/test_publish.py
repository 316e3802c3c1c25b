"""Publishing and loading rungs with the real client, in processes of its own, against the loopback Hub."""

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hub_fixtures
import pytest
from hub_client import HubClient, Publisher, wait_until
from hub_family import NAMES, assert_same_tensors, change_record
from hub_fixtures import LFS, TOKEN
from hub_server import FaultKind, HubServer
from huggingface_hub import constants

from hf_progressive.hub.names import is_published
from hf_progressive.publishing import prepare_publication
from hf_progressive.storage import check_manifest, read_json, sha256_file, write_manifest

OPTIONS = ("--license", "apache-2.0", "--language", "code", "--collection", "Tiny")

NEVER_PUBLISHED = {"training_args.bin", "optimizer.pt"}

run_dir, server, client = hub_fixtures.run_dir, hub_fixtures.server, hub_fixtures.client
workshop = hub_fixtures.workshop


@pytest.fixture(scope="module")
def published(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubServer, HubClient]]:
    """A Hub that holds the family, for tests that only read from it."""
    folder = tmp_path_factory.mktemp("published")
    with HubServer(folder / "hub", token=TOKEN) as running:
        writer = HubClient(running, folder / "home")
        writer.publish_family(run_dir, "org/{name}", *OPTIONS)
        yield running, writer


@pytest.fixture
def reader(published: tuple[HubServer, HubClient], tmp_path: Path) -> HubClient:
    """A client with an empty cache."""
    return HubClient(published[0], tmp_path / "home")


# What is published


def test_family_is_on_the_hub_whole(published: tuple[HubServer, HubClient], run_dir: Path) -> None:
    server, _ = published
    for name in NAMES:
        repo_id, final = f"org/{name}", run_dir / name / "final"
        files = server.storage.files(repo_id)
        assert not files.keys() & NEVER_PUBLISHED
        assert files["LICENSE"] == b"a licence"
        assert {"README.md", "rung.json", "phi/fisher.safetensors", "phi/subspace.safetensors"} <= files.keys()
        assert ("growth.json" in files) == (name != "d4")
        for local in final.rglob("*"):
            path = local.relative_to(final).as_posix()
            if local.is_file() and is_published(path) and path not in ("manifest.json", "rung.json"):
                assert files[path] == local.read_bytes(), path
        listed = json.loads(files["manifest.json"])["files"]
        assert listed.keys() == files.keys() - {".gitattributes", "manifest.json"}
        # One commit for everything, and a tag on it.
        assert [commit["title"] for commit in server.storage.history(repo_id)] == [f"Publish {name}", "initial commit"]
        tags = server.storage.repository(repo_id)["tags"]
        assert list(tags.values()) == [server.storage.head(repo_id)]
        assert next(iter(tags)) in files["README.md"].decode()


def test_collection_holds_the_family_in_order(published: tuple[HubServer, HubClient]) -> None:
    (collection,) = published[0].storage.collections()
    assert collection["title"] == "Tiny"
    assert collection["owner"]["name"] == "org"
    assert [item["id"] for item in collection["items"]] == [f"org/{name}" for name in NAMES]


def test_publishing_again_changes_nothing(published: tuple[HubServer, HubClient], run_dir: Path) -> None:
    server, writer = published
    heads = [server.storage.head(f"org/{name}") for name in NAMES]
    asked = len(server.requests)
    # The command line does what the example did.
    command = str(Path(sys.executable).parent / "hf-progressive")
    result = writer.run(command, "publish", str(run_dir), "--repo-id", "org/{name}", *OPTIONS, "--json")
    addresses = json.loads(result.stdout.splitlines()[-1])["urls"]
    assert addresses[:3] == [f"{server.endpoint}/org/{name}" for name in NAMES]
    assert [server.storage.head(f"org/{name}") for name in NAMES] == heads
    assert not [path for _, path, _ in server.requests[asked:] if "/commit/" in path or "/shards" in path]
    assert len(server.storage.collections()) == 1


# Loading


def test_stock_classes_and_growth_take_the_rung_by_name(
    published: tuple[HubServer, HubClient], reader: HubClient, run_dir: Path, tmp_path: Path
) -> None:
    program = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
from hf_progressive import grow_checkpoint, verify_growth
from hf_progressive.hub import fetch_rung
AutoModelForCausalLM.from_pretrained("org/d4").save_pretrained("loaded")
tokenizer = AutoTokenizer.from_pretrained("org/d4")
assert tokenizer.decode(tokenizer("def f(self):").input_ids) == "def f(self):"
grow_checkpoint("org/d4", "by-name", {"n_layer": 5}, seed=1)
grow_checkpoint(fetch_rung("org/d4"), "fetched", {"n_layer": 5}, seed=1)
assert verify_growth("org/d4", "by-name").preserved
"""
    card = published[0].storage.files("org/d5")["README.md"].decode()
    examples = [block.partition("```")[0] for block in card.split("```python\n")[1:]]
    assert len(examples) == 2
    reader.python("\n".join([f"import os; os.chdir({str(tmp_path)!r})", program, *examples]))
    assert_same_tensors(tmp_path / "loaded/model.safetensors", run_dir / "d4/final/model.safetensors")
    for way in ("by-name", "fetched"):
        assert_same_tensors(tmp_path / way / "model.safetensors", run_dir / "d5/init/model.safetensors")
    assert read_json(tmp_path / "d6" / "config.json")["n_embd"] == 48  # made by the card's example

    # And again without the Hub.
    offline = program.replace('"by-name"', '"offline"').replace('"fetched"', '"offline-fetched"')
    reader.python(f"import os; os.chdir({str(tmp_path)!r})\n{offline}", HF_HUB_OFFLINE="1")
    assert_same_tensors(tmp_path / "offline/model.safetensors", run_dir / "d5/init/model.safetensors")


def test_fetched_rung_is_pinned_and_brings_what_a_successor_needs(
    published: tuple[HubServer, HubClient], reader: HubClient, run_dir: Path
) -> None:
    (tag,) = published[0].storage.repository("org/d5")["tags"]
    program = """
import sys
from huggingface_hub import ModelCard
from hf_progressive.hub import fetch_rung
print(fetch_rung("org/d5", revision=sys.argv[1]))
for repo_id, revision in (("org/d5", "v9"), ("org/none", None), ("none", None)):
    try:
        fetch_rung(repo_id, revision=revision)
    except (FileNotFoundError, ValueError) as error:
        print(error)
card = ModelCard.load("org/d5")
card.validate()
print(card.data.base_model, card.data["base_model_relation"], card.data.eval_results[0].metric_type)
"""
    where, no_revision, no_repository, no_name, metadata = reader.python(program, tag).stdout.splitlines()
    folder = Path(where)
    assert folder.name == published[0].storage.head("org/d5")
    check_manifest(folder)
    for name in ("rung.json", "growth.json", "phi/fisher.safetensors", "phi/subspace.safetensors"):
        assert (folder / name).is_file()
    assert sha256_file(folder / "phi/fisher.safetensors") == sha256_file(run_dir / "d5/final/phi/fisher.safetensors")
    assert no_revision.startswith("org/d5 at v9: there is no such repository or revision")
    assert no_repository.startswith("org/none: there is no such repository or revision")
    assert no_name.startswith("'none' is no repository's name")
    assert metadata.split() == ["org/d4", "finetune", "bits_per_byte"]

    program = "from hf_progressive.hub import fetch_rung; fetch_rung('org/d6')"
    result = reader.python(program, fails=True, HF_HUB_OFFLINE="1")
    assert result.stderr.rstrip().endswith("org/d6: not in the cache, and the Hub could not be asked")


def test_command_lines_download_and_verify(reader: HubClient, run_dir: Path, tmp_path: Path) -> None:
    scripts = Path(sys.executable).parent
    reader.run(str(scripts / "hf"), "download", "org/d4", "--local-dir", str(tmp_path / "copy"))
    check_manifest(tmp_path / "copy")
    local = str(run_dir / "d4" / "final")
    result = reader.run(str(scripts / "hf-progressive"), "verify", local, str(tmp_path / "copy"), "--json")
    assert json.loads(result.stdout.splitlines()[-1])["max_abs_logit_diff"] == 0


# Interruptions


def _complete(server: HubServer, final: Path, repo_id: str) -> bool:
    expected = prepare_publication(final, repo_id).files
    stored = server.storage.read_commit(server.storage.head(repo_id))["files"]
    return {name: file.sha256 for name, file in expected.items()} == {
        name: stored[name]["sha256"] for name in stored if name not in (".gitattributes", "NOTES.md")
    }


@pytest.mark.parametrize(
    ("number", "faults"),
    enumerate([
        [("status", "POST", "/create$", {}), ("status", "POST", "/validate-yaml", {"status": 502})],
        [("status", "POST", "/preupload/", {"status": 503}), ("status", "POST", "/tag/", {})],
        [("cut", "GET", "/tree/", {}), ("slow", "POST", "/commit/", {"seconds": 0.5})],
        [("status", "POST", "/commit/", {"status": 429, "headers": {"Retry-After": "2"}})],
        [("lose response", "POST", "/commit/", {})],
        [("conflict", "POST", "/commit/", {"times": 2})],
    ]),
    ids=["create", "preupload and tag", "cut and slow", "rate limit", "lost response", "conflict"],
)  # fmt: skip
def test_faults_are_survived(
    workshop: tuple[HubServer, Publisher], run_dir: Path, number: int, faults: list[tuple[FaultKind, str, str, dict]]
) -> None:
    server, publisher = workshop
    final, repo_id = run_dir / "d4" / "final", f"org/faults-{number}-d4"
    injected = [server.inject(kind, method, path, **options) for kind, method, path, options in faults]
    assert publisher.publish(final, repo_id) == f"{server.endpoint}/{repo_id}"
    assert all(fault.struck == fault.times for fault in injected)
    _assert_published(server, final, repo_id)
    if "Retry-After" in str(faults):
        requests = zip(server.times, server.requests, strict=True)
        first, second = (moment for moment, (_, path, _) in requests if f"{repo_id}/commit/" in path)
        assert second - first >= 2


@pytest.mark.parametrize(
    ("environment", "part_size", "faults"),
    [
        ({}, 0, [("status", "POST", "/v1/xorbs/", {}), ("cut", "POST", "/v2/shards", {})]),
        (LFS, 0, [("cut", "PUT", "/storage/", {"after_bytes": 20_000}), ("status", "POST", "/lfs/objects", {})]),
        pytest.param(
            LFS,
            100_000,
            [("cut", "PUT", "/storage/.*/2", {"after_bytes": 20_000}), ("status", "POST", "/complete", {})],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["xet", "lfs", "lfs in parts"],
)
def test_cut_uploads_are_survived(
    server: HubServer, client: HubClient, run_dir: Path, environment: dict[str, str], part_size: int, faults: list
) -> None:
    server.large_files.part_size = part_size
    injected = [server.inject(kind, method, path, **options) for kind, method, path, options in faults]
    with client.publisher(**environment) as publisher:
        publisher.publish(run_dir / "d4" / "final", "org/d4")
    assert all(fault.struck == fault.times for fault in injected)
    _assert_published(server, run_dir / "d4" / "final", "org/d4")


def _assert_published(server: HubServer, final: Path, repo_id: str) -> None:
    """The head holds exactly what is to be published, from one commit, under its tag."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", server.endpoint)  # the card links to the Hub it is on
        expected = prepare_publication(final, repo_id)
    stored = server.storage.read_commit(server.storage.head(repo_id))["files"]
    held = {name: entry["sha256"] for name, entry in stored.items() if name not in (".gitattributes", "NOTES.md")}
    assert held == {name: file.sha256 for name, file in expected.files.items()}
    titles = [commit["title"] for commit in server.storage.history(repo_id)]
    assert titles.count("Publish d4") == 1
    assert server.storage.repository(repo_id)["tags"][expected.tag] == server.storage.head(repo_id)


@pytest.mark.slow
def test_killed_upload_leaves_the_old_state_and_is_finished_later(
    server: HubServer, client: HubClient, run_dir: Path
) -> None:
    final = run_dir / "d4" / "final"
    stalled = server.inject("slow", "PUT", "/storage/", times=9, seconds=30)
    process = client.start(sys.executable, "-c", _program(final), **LFS)
    wait_until(lambda: stalled.struck)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [commit["title"] for commit in server.storage.history("org/d4")] == ["initial commit"]
    server.faults.clear()
    with client.publisher(**LFS) as publisher:
        publisher.publish(final, "org/d4")
    _assert_published(server, final, "org/d4")


@pytest.mark.parametrize(
    ("number", "fault"),
    enumerate([
        ("status", "POST", "/preupload/", {}),
        ("status", "POST", "/commit/", {"status": 429, "headers": {"Retry-After": "0"}}),
        ("cut", "POST", "/commit/", {"after_bytes": 500}),
        ("conflict", "POST", "/commit/", {}),
    ]),
    ids=["status", "rate limit", "cut", "conflict"],
)  # fmt: skip
def test_a_fault_that_stays_leaves_the_old_revision(
    workshop: tuple[HubServer, Publisher], run_dir: Path, tmp_path: Path, number: int, fault: tuple
) -> None:
    server, publisher = workshop
    repo_id, old, new = f"org/stays-{number}-d4", run_dir / "d4" / "final", tmp_path / "final"
    shutil.copytree(old, new)
    change_record(new, bits_per_byte=2.5)
    publisher.publish(old, repo_id)
    files = server.storage.files(repo_id)
    kind, method, path, options = fault
    injected = server.inject(kind, method, f"{repo_id}{path}", times=99, **options)
    assert publisher.publish(new, repo_id, attempts=1).startswith(f"HubError: {repo_id}: ")
    held = server.storage.files(repo_id)
    assert {name: content for name, content in held.items() if name != "NOTES.md"} == files
    server.faults.remove(injected)
    assert publisher.publish(new, repo_id) == f"{server.endpoint}/{repo_id}"
    assert json.loads(server.storage.files(repo_id)["rung.json"])["bits_per_byte"] == 2.5
    assert [commit["title"] for commit in server.storage.history(repo_id)].count("Publish d4") == 2


def _program(final: Path) -> str:
    return f"from hf_progressive.publishing import publish_rung; publish_rung({str(final)!r}, 'org/d4')"


def test_damage_on_the_way_is_noticed(
    workshop: tuple[HubServer, Publisher], run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, publisher = workshop
    store = server.storage.commit

    def damage(repo_id: str, additions: dict, title: str, deletions: tuple = ()) -> str:
        # Stores something else than it was sent, and answers as if all were well.
        if "config.json" in additions:
            additions = additions | {"config.json": additions["config.json"].replace(b"gpt2", b"gpt3")}
        return store(repo_id, additions, title, deletions)

    monkeypatch.setattr(server.storage, "commit", damage)
    answer = publisher.publish(run_dir / "d4" / "final", "org/damaged-d4")
    assert answer.startswith("HubError: org/damaged-d4: at ")
    assert answer.endswith("the Hub holds other content than was sent for config.json")


def test_new_revision_replaces_exactly_its_own_files(
    workshop: tuple[HubServer, Publisher], run_dir: Path, tmp_path: Path
) -> None:
    server, publisher = workshop
    repo_id, final = "org/revised-d4", tmp_path / "run" / "d4" / "final"
    shutil.copytree(run_dir, tmp_path / "run")
    (final / "model.safetensors").unlink()
    _write_in_shards(run_dir / "d4" / "final", final)
    publisher.publish(final, repo_id)
    sharded = server.storage.files(repo_id)
    assert sum(name.startswith("model-0000") for name in sharded) > 1
    assert "model.safetensors" not in sharded
    server.storage.commit(repo_id, {"NOTES.md": b"by hand\n"}, "A note")

    publisher.publish(run_dir / "d4" / "final", repo_id)
    files = server.storage.files(repo_id)
    assert files["NOTES.md"] == b"by hand\n"  # other people's files stay
    assert "model.safetensors" in files
    assert not [name for name in files if name.startswith(("model-0000", "model.safetensors.index"))]
    # Each revision of the rung keeps its tag, and is still there under it.
    first, second = server.storage.repository(repo_id)["tags"].values()
    assert server.storage.read_commit(first)["files"].keys() == sharded.keys()
    assert second == server.storage.head(repo_id)


def _write_in_shards(source: Path, target: Path) -> None:
    from transformers import GPT2LMHeadModel

    GPT2LMHeadModel.from_pretrained(source).save_pretrained(target, max_shard_size="100KB")
    write_manifest(target)
