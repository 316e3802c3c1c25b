"""The report of a folder: a run's or a study's."""

import os
from pathlib import Path

from hf_progressive.report.ladder_page import LivePage
from hf_progressive.report.page import ReportPaths
from hf_progressive.report.study_page import write_study_report


def write_report(folder: str | os.PathLike[str]) -> ReportPaths:
    """Write the report of a run or of a study, finished or not, from its records alone.

    Args:
        folder: The folder that `run_ladder` or `run_study` wrote.

    Returns:
        Where the files are, as `.html`, `.markdown` and `.plots`: `report.html`, `report.md` and `plots/*.png` in a
        run's folder, `study.html`, `study.md` and `plots/*.png` in a study's. Each is replaced whole.

    Raises:
        FileNotFoundError: The folder has neither `ladder.json` nor `study.json`.
        ValueError: A record is damaged; the message names file and value.

    >>> write_report("runs/trunk_small").html  # doctest: +SKIP
    PosixPath('runs/trunk_small/report.html')
    """
    is_study = (Path(folder) / "study.json").is_file()
    return write_study_report(folder) if is_study else LivePage(folder).write_all()
