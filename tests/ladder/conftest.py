"""A ladder that has been run."""

import pytest
from ladder_fixtures import Finished, write_ladder

from hf_progressive.config import load_ladder_config
from hf_progressive.ladder.rung_loop import run_ladder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A configuration, the folder of its finished run, and what the run returned."""
    folder = tmp_path_factory.mktemp("ladder")
    path = write_ladder(folder)
    return path, folder / "run", run_ladder(load_ladder_config(path), folder / "run")
