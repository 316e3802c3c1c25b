"""What is not the user's fault: memory that does not suffice, divergence, and faults of the program."""

import argparse
import logging
import sys
import traceback
import warnings

import pytest
import torch

from hf_progressive import cli


def raising(error: Exception):
    def run(options: argparse.Namespace) -> cli.Outcome:
        raise error

    return run


def test_memory_that_does_not_suffice_is_one_line_with_a_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert cli.execute(raising(error), argparse.Namespace(json=False)) == cli.EXIT_CHECK_FAILED
    assert capsys.readouterr().err == (
        "hf-progressive: error: CUDA out of memory. Tried to allocate 2.00 GiB.; of a ladder,"
        " `hf-progressive plan CONFIG` says which training.micro_batch_size fits\n"
    )


def test_the_machines_memory_is_told_likewise(capsys: pytest.CaptureFixture[str]) -> None:
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.")
    assert cli.execute(raising(error), argparse.Namespace(json=False)) == cli.EXIT_CHECK_FAILED
    assert capsys.readouterr().err.startswith(
        "hf-progressive: error: the machine's memory does not suffice: 4,096 bytes more were asked for; of a ladder,"
    )


def test_after_divergence_a_lower_rate_is_proposed(capsys: pytest.CaptureFixture[str]) -> None:
    error = FloatingPointError("step 3: the loss is not finite")
    assert cli.execute(raising(error), argparse.Namespace(json=False)) == cli.EXIT_CHECK_FAILED
    assert "step 3: the loss is not finite; look at the data, or begin in" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), KeyError("wte")])
def test_a_fault_of_the_program_ends_with_what_to_report(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        cli.execute(raising(error), argparse.Namespace(json=False))
    assert traceback.format_exception(raised.value)[-1] == (
        "This is a fault of hf-progressive, not of yours: report it with what `hf-progressive doctor` prints.\n"
    )


def test_warnings_of_deepspeed_stay_out_of_what_is_piped() -> None:
    cli.execute(lambda options: (cli.EXIT_DONE, {}), argparse.Namespace(json=False))
    logger = logging.getLogger("DeepSpeed")
    assert not logger.filter(logger.makeRecord("DeepSpeed", logging.WARNING, "", 0, "no GPU", (), None))
    assert logger.filter(logger.makeRecord("DeepSpeed", logging.ERROR, "", 0, "broken", (), None))


def test_a_traceback_and_a_warning_obey_no_file_and_tell_no_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # and put back in the end
    monkeypatch.setattr(logging, "_warnings_showwarning", None)  # pytest has put its own back after an earlier test
    error, token = KeyError(f"hf_{'a' * 34}"), "hf_***"
    error.add_note("\x1b[2J\u202e")

    def run(options: argparse.Namespace) -> cli.Outcome:
        warnings.warn(f"a file holds {error}", stacklevel=1)
        raise error

    with pytest.raises(KeyError):
        cli.execute(run, argparse.Namespace(json=False))
    sys.excepthook(type(error), error, error.__traceback__)
    shown = capsys.readouterr().err
    assert f"KeyError: '{token}'" in shown
    assert "\\x1b[2J\\u202e" in shown
    assert "raise error" in shown
    (record,) = [record for record in caplog.records if record.name == "py.warnings"]
    assert token in cli.parser.ShownFormatter("%(message)s").format(record)
