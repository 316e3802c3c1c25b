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
        FileNotFoundError: The folder has neither `ladder.json` nor `study.json`; the message says what it has.
        ValueError: A record is damaged; the message names file and value.

    >>> write_report("runs/trunk_small").html  # doctest: +SKIP
    PosixPath('runs/trunk_small/report.html')
    """
    return write_study_report(folder) if holds_study(folder) else LivePage(folder).write_all()


def holds_study(folder: str | os.PathLike[str]) -> bool:
    """Tell a study's folder from a run's, by the record in it.

    Raises:
        FileNotFoundError: It has neither record.
    """
    place = Path(folder)
    if (place / "study.json").is_file():
        return True
    if (place / "ladder.json").is_file():
        return False
    if (place / "study.yaml").is_file():
        raise FileNotFoundError(
            f"{place}: its study has no record yet; `hf-progressive study` writes study.json once the corpus is ready"
        )
    lacks = "holds neither" if place.is_dir() else "is no folder; there is neither"
    raise FileNotFoundError(
        f"{place}: {lacks} a ladder's record (ladder.json) nor a study's (study.json); give a folder that"
        " `hf-progressive ladder` or `hf-progressive study` wrote"
    )
