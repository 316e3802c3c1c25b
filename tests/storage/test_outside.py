"""What readers of files from outside raise becomes one line."""

import json
import zlib

import pytest

from hf_progressive.storage import ReadingFromOutside, parse_json, read_json


class OwnError(Exception):
    pass


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (KeyError("model_type"), r"KeyError: 'model_type'"),
        (ValueError("two\nlines"), "two lines"),
        (AttributeError("'int' object has no attribute 'get'"), "AttributeError: 'int' object has no"),
        (EOFError(), "EOFError: EOFError"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (OverflowError("too large"), "OverflowError: too large"),
        (zlib.error("bad"), "error: bad"),
        (Exception("of a library in Rust"), "of a library in Rust"),
        (OwnError("declared"), "OwnError: declared"),
        (ValueError("x" * 10_000), "x{300}"),
    ],
)
def test_a_value_that_was_not_expected_is_told_in_one_line(raised, told):
    with (
        pytest.raises(ValueError, match=rf"^a.json: not valid \({told}.*\); fetch it$") as caught,
        ReadingFromOutside("a.json", "fetch it", also=(OwnError,)),
    ):
        raise raised
    assert caught.value.__cause__ is raised
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("raised", [FileNotFoundError("a.json"), KeyboardInterrupt(), OwnError(), MemoryError()])
def test_what_is_no_error_of_a_value_passes(raised):
    with pytest.raises(type(raised)) as caught, ReadingFromOutside("a.json", "fetch it"):
        raise raised
    assert caught.value is raised


def test_kinds_that_are_named_pass():
    with pytest.raises(OwnError), ReadingFromOutside("a.json", "fetch it", also=(Exception,), passing=(OwnError,)):
        raise OwnError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": 1', "not valid JSON"),
        (b"\xff\xfe{\x00}\x00", "not valid JSON .*utf-8"),
        (b"\xef\xbb\xbf{}", "not valid JSON .*BOM"),
        (b'{"a": ' + b"9" * 5000 + b"}", "4300 digits"),
    ],
)
def test_json_that_is_none_is_named(tmp_path, content, message):
    path = tmp_path / "rung.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_json_is_read_as_the_standard_library_does():
    value = {"a": [1, 2.5, None, "é"]}
    assert parse_json(json.dumps(value, ensure_ascii=False).encode(), "here") == value
    assert parse_json('{"a": 1, "a": 2}', "here", object_pairs_hook=list) == [("a", 1), ("a", 2)]
