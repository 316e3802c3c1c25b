"""YAML of every odd kind: plain values, or one clear line."""

import pytest
import yaml

from hf_progressive.config.strict_yaml import apply_overrides, parse_yaml, read_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\n? [a, b]\n: 1", "line 2: a key is a list or a mapping; keys are text"),
        ("? {a: 1}\n: 2", "line 1: a key is a list or a mapping"),
        ("a: !!timestamp zz", "could not determine a constructor for the tag 'tag:yaml.org,2002:timestamp'"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("a: !!set {1, 2}", "could not determine a constructor"),
        ("a: !!binary x", "could not determine a constructor"),
        ("a: !!int ''", "line 1: '' cannot be read as a whole number"),
        ("a: !!float zz", "line 1: 'zz' cannot be read as a number"),
        ("b: 1\na: !!bool zz", "line 2: 'zz' cannot be read as true or false"),
        ("a: 010", "line 1: 010 begins with 0, which YAML reads in base 8; write 10, or '010' in quotes for a text$"),
        (
            "b: 1\na: [-0_07]",
            "line 2: -0_07 begins with 0, which YAML reads in base 8; write -7, or '-0_07' in quotes",
        ),
        ("a: 00", "line 1: 00 begins with 0, which YAML reads in base 8; write 0, or '00'"),
        ("a: !!int '017'", "line 1: 017 begins with 0, which YAML reads in base 8; write 17, or '017'"),
        ("b: 1\n010: 2", "line 2: 010 begins with 0"),
        (
            "a: 0" + "7" * 5000,
            r"line 1: '07+\.\.\. begins with 0, which YAML reads in base 8; write '7+\.\.\., or '07+",
        ),
        (
            "a: 1:30",
            "line 1: 1:30 has a colon, which YAML reads in base 60; write the number without, or '1:30' in quo",
        ),
        ("b: 1\na: [12:30:00.5]", "line 2: 12:30:00.5 has a colon, which YAML reads in base 60"),
        ('a: "\\ud800"', r"line 1: .* cannot be read as text"),
        ("a: &x [*x]", "line 1: an alias stands for what it is in; write the value out"),
        ("&x [*x]", "line 1: an alias stands for what it is in; write the value out"),
        ("&x {a: *x}", "line 1: an alias stands for what it is in; write the value out"),
        ("a: " + "9" * 5000, r"line 1: '9+\.\.\. cannot be read as a whole number"),
        ("b: &x {c: 1}\na:\n  <<: *x", "line 3: keys are not merged by <<; write them out"),
        ("{b: " * 5000, "nested too deeply"),
        (BOMB, r"holds 1,234,567,909 values, aliases written out; 100,000 are the most"),
        ("a: 1\n--- \nb: 2", "expected a single document"),
    ],
)
def test_what_is_no_plain_value_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "ladder.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=f"override of a: .*{message}") as caught:
        apply_overrides({}, [f"a={text}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: sümmen".encode("latin-1"), "is not UTF-8, at its byte 8; save it as UTF-8 text"),
        ("name: x".encode("utf-16"), "is not UTF-8, at its byte 1; save it as UTF-8 text"),
        (b'{"text": "a corpus"}\n' * 100_000, "is larger than 1,048,576 bytes, which no configuration is"),
        (b"hello", "holds text, expected a mapping of keys to values"),
        (b"3", "holds a whole number, expected a mapping of keys to values"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_at_once(tmp_path, content, message):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_date_is_the_text_it_is_written_as():
    assert parse_yaml("revision: 2024-05-01\n2024-05-02: ['12:30:00']") == {
        "revision": "2024-05-01",
        "2024-05-02": ["12:30:00"],
    }


def test_a_number_is_the_one_it_is_written_as():
    written = "[0, -0, 0.5, 1_000, 10, 0x10, 0b11, 0.0e+3, 1e3, 08, 0o10, '010', '1:30', a:1, \"0:1\"]"
    expected = [0, 0, 0.5, 1000, 10, 16, 3, 0.0, "1e3", "08", "0o10", "010", "1:30", "a:1", "0:1"]
    assert parse_yaml(written) == expected
    assert parse_yaml(yaml.safe_dump(expected)) == expected  # as a run's ladder.yaml is written


def test_aliases_are_as_good_as_what_they_stand_for():
    assert parse_yaml("a: &x {b: [1, 2]}\nc: *x") == {"a": {"b": [1, 2]}, "c": {"b": [1, 2]}}
