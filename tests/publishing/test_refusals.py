"""What is refused, what is never written down, and what must not disturb training."""

import logging
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hub_fixtures
import pytest
from hub_client import HubClient, Publisher, wait_until
from hub_family import NAMES, change_record
from hub_fixtures import LFS, TOKEN
from hub_server import HubServer

from hf_progressive import cli
from hf_progressive.publishing import prepare_publication, publish_family, publish_rung
from hf_progressive.storage import read_json, write_manifest

run_dir, server, client = hub_fixtures.run_dir, hub_fixtures.server, hub_fixtures.client
workshop = hub_fixtures.workshop


# Refusals: one line each, and nothing sent


def test_hub_refuses(workshop: tuple[HubServer, Publisher], client: HubClient, run_dir: Path) -> None:
    server, publisher = workshop
    final = run_dir / "d4" / "final"
    server.storage.create_repository("org/open", private=False)
    server.storage.commit("org/open", {".gitattributes": b""}, "initial commit")
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("PermissionError: org/d4: there is no token for the Hub; set HF_TOKEN", "org/d4", {"token": None}),
        ("HubError: org/d4: the Hub does not accept the token; set HF_TOKEN", "org/d4", {"token": "hf_no"}),
        ("HubError: other/d4: the token may not do this; use one with write access", "other/d4", {}),
        ('ValueError: org/bad: Invalid metadata in README.md. - "license" must be', "org/bad", {"license": "own"}),
        ("ValueError: org/open: the repository is public already", "org/open", {"private": True}),
        ("ValueError: 'd4' is no repository's name; give ORG/NAME", "d4", {}),
    ]
    committed = server.asked("POST", "/commit/")
    for message, repo_id, options in cases:
        assert publisher.publish(final, repo_id, **options).startswith(message)
    server.inject("status", "POST", "/busy/commit/", times=2, status=409)
    answer = publisher.publish(final, "org/busy", attempts=2)
    assert answer.startswith("HubError: org/busy: somebody else keeps writing to it; try again later (status 409")
    server.inject("status", "POST", "/down/commit/", times=2)
    answer = publisher.publish(final, "org/down", attempts=2)
    assert answer == f"HubError: org/down: {server.endpoint} failed (status 500)"
    assert server.asked("POST", "/commit/") == committed
    for repo_id in ("org/bad", "org/busy", "org/down"):
        assert [commit["title"] for commit in server.storage.history(repo_id)] == ["initial commit"]
    with client.publisher(HF_HUB_OFFLINE="1") as offline:
        answer = offline.publish(final, "org/d4")
    assert answer == "HubError: org/d4: HF_HUB_OFFLINE is set, and this needs the Hub; unset it"


def test_a_licence_that_the_hub_does_not_know_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"license: 'Apache 2\.0' is no identifier .* did you mean 'apache-2\.0'\?"):
        prepare_publication(tmp_path / "nowhere", "org/d4", license="Apache 2.0")


@pytest.mark.parametrize("repo_id", ["d4", "a/b/c", "org/", "org/-d4", "org/d--4", "org/d4.git", "org/" + "d" * 99])
def test_names_that_are_none(run_dir: Path, repo_id: str) -> None:
    with pytest.raises(ValueError, match="is no repository's name; give ORG/NAME"):
        prepare_publication(run_dir / "d4" / "final", repo_id)


def _damage_weights(final: Path) -> None:
    with open(final / "model.safetensors", "r+b") as file:
        file.seek(4000)
        file.write(b"\xff")


def _lose_weights(final: Path) -> None:
    (final / "model.safetensors").unlink()
    write_manifest(final)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_damage_weights, ValueError, "model.safetensors: its SHA-256 differs from the manifest's"),
        (_lose_weights, FileNotFoundError, "model.safetensors: a rung cannot be published without it"),
        (lambda final: (final / "rung.json").unlink(), FileNotFoundError, "holds no rung.json; give a finished rung"),
        (lambda final: (final / "manifest.json").unlink(), FileNotFoundError, "manifest.json: no such file"),
        (
            lambda final: change_record(final, environment={"argument": "hf_" + "x" * 34}),
            ValueError,
            "rung.json holds what looks like an access token",
        ),
        (
            lambda final: change_record(final, environment={"argument": "hf_oauth_" + "x" * 34}),
            ValueError,
            "rung.json holds what looks like an access token",
        ),
    ],
    ids=["damaged", "no weights", "no record", "no manifest", "token", "OAuth token"],
)
def test_unfit_rungs_are_refused(
    run_dir: Path, tmp_path: Path, change: Callable[[Path], object], error: type[Exception], message: str
) -> None:
    final = tmp_path / "final"
    shutil.copytree(run_dir / "d4" / "final", final)
    change(final)
    with pytest.raises(error, match=message):
        prepare_publication(final, "org/d4")


def test_dry_run_sends_nothing(server: HubServer, client: HubClient, run_dir: Path) -> None:
    result = client.publish_family(run_dir, "org/{name}", "--collection", "Tiny", "--dry-run")
    assert server.requests == []
    assert "749,816  model.safetensors" in result.stderr
    assert "# d6" in result.stderr
    assert result.stdout.split() == [f"{server.endpoint}/org/{name}" for name in NAMES]
    with pytest.raises(ValueError, match="would give every rung the same repository; write ORG/{name}"):
        publish_family(run_dir, "org/all")


def test_a_card_can_be_piped(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dry = ["publish", str(run_dir / "d4" / "final"), "--repo-id", "org/d4", "--dry-run"]
    assert cli.main(dry) == cli.EXIT_DONE
    written = capsys.readouterr()
    assert written.out.rstrip("\n") == prepare_publication(run_dir / "d4" / "final", "org/d4").card.rstrip("\n")
    assert "model.safetensors" in written.err
    assert "nothing was sent" in written.err


# Secrets


@pytest.mark.parametrize("environment", [{}, pytest.param(LFS, marks=pytest.mark.slow)], ids=["xet", "lfs"])
def test_token_is_written_nowhere(
    server: HubServer, client: HubClient, run_dir: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    server.inject("status", "POST", "/commit/", status=500)
    slow = server.inject("slow", "POST", "/create$", seconds=3.0)
    program = """
import logging
logging.basicConfig(level=logging.DEBUG)
logging.getLogger("matplotlib").setLevel(logging.INFO)
from hf_progressive.config import PublishConfig
from hf_progressive.publishing import FamilyPublisher, publish_rung
from hf_progressive.hub import HubError
with FamilyPublisher(PublishConfig(repo_id="org/{{name}}", private=True, collection="Tiny")) as publisher:
    publisher({run!r})
publish_rung({final!r}, "other/d4")
"""
    program = program.format(run=str(run), final=str(run / "d4" / "final"))
    process = client.start(sys.executable, "-c", program, HF_DEBUG="1", TMPDIR=str(tmp_path), **environment)
    with ThreadPoolExecutor() as pool:
        output = pool.submit(process.communicate, timeout=240)
        wait_until(lambda: slow.struck)
        for file in ("cmdline", "comm"):
            assert TOKEN.encode() not in Path(f"/proc/{process.pid}/{file}").read_bytes()
        outputs = output.result()
    assert process.returncode == 1  # the last line is refused, and shows its traceback
    assert "the token may not do this" in outputs[1]
    assert "Authorization" in outputs[1] or "authorization" in outputs[1]  # requests were logged, in full
    assert server.storage.repository("org/d6")["private"]
    assert TOKEN not in "".join(outputs)
    searched = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(searched) > 50
    assert not [path for path in searched if TOKEN.encode() in path.read_bytes()]


# Beside training


def test_a_failed_publication_is_a_warning(server: HubServer, client: HubClient, run_dir: Path) -> None:
    program = f"""
import logging
logging.basicConfig(level=logging.INFO, format="%(message)s")
from hf_progressive.config import PublishConfig
from hf_progressive.publishing import FamilyPublisher
with FamilyPublisher(PublishConfig(repo_id="other/{{name}}")) as publisher:
    for _ in range(3):
        publisher({str(run_dir)!r})
print("trained on")
"""
    result = client.python(program)
    assert result.stdout == "trained on\n"
    warnings = [
        line for line in result.stderr.splitlines() if line.startswith("not published: other/d4: the token may")
    ]
    assert 1 <= len(warnings) <= 2  # the one that had begun, and the last
    assert warnings[0].endswith(f"finish it with: hf-progressive publish {run_dir} --repo-id 'other/{{name}}'")


CATCH_UP = """
import sys
from hf_progressive.config import PublishConfig
from hf_progressive.publishing import FamilyPublisher
for line in sys.stdin:
    with FamilyPublisher(PublishConfig(repo_id="org/{name}", license=line.strip())) as publisher:
        publisher.catch_up(sys.argv[1])
    print("done", flush=True)
"""


def test_the_hub_is_asked_about_a_published_run_only_where_something_has_changed(
    server: HubServer, client: HubClient, run_dir: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(run_dir, tmp_path / "run")
    with client.start(sys.executable, "-c", CATCH_UP, str(run)) as process:

        def asked(license: str) -> int:
            before = len(server.requests)
            assert process.stdin is not None
            assert process.stdout is not None
            print(license, file=process.stdin, flush=True)
            assert process.stdout.readline() == "done\n"
            return len(server.requests) - before

        assert asked("mit") > 0
        published = run / "published.json"
        assert read_json(published)["addresses"] == [f"{server.endpoint}/org/{name}" for name in NAMES]
        assert asked("mit") == 0
        assert asked("apache-2.0") > 0
        assert b"license: apache-2.0" in server.storage.files("org/d4")["README.md"]
        assert asked("apache-2.0") == 0
        manifest = run / "d6" / "final" / "manifest.json"
        manifest.write_text(manifest.read_text() + "\n")
        assert asked("apache-2.0") > 0
        server.inject("status", "POST", "/commit/", times=1, status=403)
        assert asked("mit") > 0  # in vain
        assert not published.exists()
        published.write_text("{")
        assert asked("mit") > 0
        assert asked("mit") == 0
        head = server.storage.head("org/d4")
        published.unlink()
        assert asked("mit") > 0
        assert server.storage.head("org/d4") == head


def test_a_dry_run_shows_itself_in_a_script_that_shows_no_messages(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_progressive.publishing.publish.logger", logging.Logger("silent", logging.WARNING))
    publish_rung(run_dir / "d4" / "final", "org/d4", dry_run=True)
    shown = capsys.readouterr().err
    assert "  model.safetensors" in shown
    assert "# d4" in shown
    with pytest.raises(ValueError, match=r"language: is the text 'en'; give a list of codes, \['en'\]"):
        publish_rung(run_dir / "d4" / "final", "org/d4", language="en", dry_run=True)
