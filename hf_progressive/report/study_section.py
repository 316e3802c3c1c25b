"""A study's result as a section of another document, so that a README says what its record says and nothing else."""

import os
from pathlib import Path

from hf_progressive.records.study import StudyRecord, read_study
from hf_progressive.report.report import holds_study
from hf_progressive.report.study_findings import find_in_study
from hf_progressive.report.study_tables import phi_table, steps_table
from hf_progressive.storage import atomic_file, visible

_BEGIN, _END = "<!-- study: begin -->", "<!-- study: end -->"


def study_section(study: StudyRecord) -> str:
    """Return a study's result in Markdown: the answer, its steps, how sure it is, and Φ against none."""
    study = study.without_outcomes() if study.chooses_rates else study
    findings, phi = find_in_study(study), phi_table(study)
    parts = [f"**{findings.headline}.** {findings.explanation}", steps_table(study).markdown()]
    parts.append("\n".join(f"- {sentence}" for sentence in (findings.unfinished, *findings.certainty) if sentence))
    if phi is not None:
        parts += [
            "Φ against none, bits per byte at shares of the budget: at equal FLOPs, and at equal tokens, where its "
            "estimates cost nothing. Below 0 it helps.",
            phi.markdown(),
        ]
    return "\n\n".join(parts)


def write_section(study_dir: str | os.PathLike[str], document: str | os.PathLike[str]) -> None:
    """Put a study's result into a document, in place of what stands between its two marks."""
    path = Path(document)
    if not holds_study(study_dir):
        raise ValueError(
            f"{study_dir}: holds a ladder, and a document takes the result of a study; give a study's folder"
        )
    section = visible(study_section(read_study(Path(study_dir))))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8; give a text file with the marks") from None
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        lacks = _END if begin else _BEGIN
        raise ValueError(f"{path}: has no line {lacks}; the study's result goes between {_BEGIN} and {_END}")
    with atomic_file(path) as temporary:
        temporary.write_text(f"{before}{begin}\n{section}\n{end}{after}", encoding="utf-8")
