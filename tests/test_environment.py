"""The installed command needs none of the variables that the tests set; .ci/plain_install tries the others."""

import subprocess
import sys
from pathlib import Path

from environment import ENVIRONMENT, user_environment

LADDER = [
    "ladder", "ladder_tiny", "--output-dir", "run",
    "--set", "rungs=[{name: l1w16, n_layer: 1, n_embd: 16, n_head: 2}]",
    "cold=none", "training.evaluations=1", "phi.ewc_lambda=0", "phi.gamma=0", "data.max_documents=30",
]  # fmt: skip


def test_a_ladder_needs_no_variable_of_the_tests(tmp_path: Path) -> None:
    environment = user_environment()
    assert not environment.keys() & ENVIRONMENT.keys()
    result = subprocess.run(
        [Path(sys.executable).with_name("hf-progressive"), *LADDER],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "l1w16" / "final" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "report.html").is_file()
