"""YAML of every odd kind: plain values, or one clear line."""

import pytest

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
        ("a: !!int ''", "not valid YAML"),
        ("a: !!float zz", "could not convert string to float"),
        ("a: &x [*x]", "unconstructable recursive node"),
        ("a: " + "9" * 5000, "4300 digits"),
        ("<<: 1", "could not determine a constructor"),
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


def test_a_date_is_the_text_it_is_written_as():
    assert parse_yaml("revision: 2024-05-01\n2024-05-02: [12:30:00]") == {
        "revision": "2024-05-01",
        "2024-05-02": [45000],  # a number of base 60, as YAML 1.1 has it
    }


def test_aliases_are_as_good_as_what_they_stand_for():
    assert parse_yaml("a: &x {b: [1, 2]}\nc: *x") == {"a": {"b": [1, 2]}, "c": {"b": [1, 2]}}
