"""The example runs offline, and more λ means less forgotten."""

import json
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "continue_with_ewc.py"
SMALL = [
    "--layers", "1", "--width", "32", "--vocabulary", "512", "--characters", "300000", "--steps", "60", "40",
    "--rates", "1e-2", "1e-2", "--fisher-blocks", "32",
]  # fmt: skip


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *SMALL, *arguments])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    return lines, json.loads(lines[-1])


def test_a_strong_penalty_forgets_less_and_learns_less(monkeypatch, capsys):
    lines, rows = run(monkeypatch, capsys, "--lambdas", "1e6")
    free, held = rows
    assert held["forgotten"] < 0.2 * free["forgotten"]
    assert held["python"] > free["python"]
    assert [line.split()[0] for line in lines[-4:-1]] == ["λ", "0", "1e+06"]


@pytest.mark.parametrize("suffix", [".txt", ".parquet"])
def test_english_may_come_from_a_file(monkeypatch, capsys, tmp_path, suffix):
    texts = [f"Document {number} of the collection speaks of the sea. " * 40 for number in range(80)]
    path = tmp_path / f"english{suffix}"
    if suffix == ".txt":
        path.write_text("\n\n".join(texts), encoding="utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"text": texts}), path)
    _, rows = run(monkeypatch, capsys, "--english", str(path), "--lambdas", "1", "--steps", "4", "2")
    assert [row["lambda"] for row in rows] == [0.0, 1.0]
