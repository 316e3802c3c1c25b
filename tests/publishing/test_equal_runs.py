"""Two equal runs, each timed by its own clock: what they publish is equal, file by file and tag by tag."""

from pathlib import Path

import hub_fixtures
import pytest
from hub_client import Publisher
from hub_server import HubServer
from ladder_fixtures import NAMES, RUNGS, ladder_mapping, write_ladder

from hf_progressive.config import load_ladder_config
from hf_progressive.ladder.rung_loop import run_ladder
from hf_progressive.publishing import prepare_publication
from hf_progressive.storage import read_json

workshop = hub_fixtures.workshop


@pytest.mark.slow
def test_equal_runs_publish_equal_files(workshop: tuple[HubServer, Publisher], tmp_path: Path) -> None:
    server, publisher = workshop
    training = ladder_mapping(tmp_path)["training"] | {"tokens_per_parameter": 0.1}
    config = load_ladder_config(write_ladder(tmp_path, rungs=RUNGS[:2], cold=[NAMES[1]], training=training))
    runs = tmp_path / "one", tmp_path / "other"
    for run in runs:
        run_ladder(config, run)
    for name in NAMES[:2]:
        finals = [run / name / "final" for run in runs]
        times = [read_json(final / "rung.json")["seconds"] for final in finals]
        assert times[0] != times[1]
        first, second = (prepare_publication(final, f"org/{name}") for final in finals)
        assert {path: file.sha256 for path, file in first.files.items()} == {
            path: file.sha256 for path, file in second.files.items()
        }
        assert first.tag == second.tag
        for final in finals:  # the other one's is there already
            assert publisher.publish(final, f"org/{name}") == f"{server.endpoint}/org/{name}"
        titles = [commit["title"] for commit in server.storage.history(f"org/{name}")]
        assert titles == [f"Publish {name}", "initial commit"]
        assert list(server.storage.repository(f"org/{name}")["tags"]) == [first.tag]
