"""Licences by the identifiers that the Hub takes."""

import pytest

from hf_progressive.config.after_training import PublishConfig
from hf_progressive.config.licence import KNOWN, require_licence


@pytest.mark.parametrize("text", [None, "apache-2.0", "mit", "other", "llama3.1", "eupl-1.2", "some-new-licence"])
def test_identifiers_pass_and_so_may_ones_that_the_hub_adds(text: str | None) -> None:
    require_licence(text)
    for known in KNOWN:
        require_licence(known)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("Apache-2.0", "apache-2.0"),
        ("Apache 2.0", "apache-2.0"),
        ("apache2.0", "apache-2.0"),
        ("apache", "apache-2.0"),
        ("apache2", "apache-2.0"),
        ("gpl3", "gpl-3.0"),
        ("MIT", "mit"),
        ("CC BY-SA 4.0", "cc-by-sa-4.0"),
        ("gpl 3.0", "gpl-3.0"),
    ],
)
def test_another_way_to_write_one_is_refused_with_it(text: str, meant: str) -> None:
    with pytest.raises(ValueError, match="is no identifier of a licence on the Hub") as error:
        require_licence(text)
    assert f"did you mean '{meant}'?" in str(error.value)


@pytest.mark.parametrize("text", ["", "All rights reserved", "ask me\nfirst"])
def test_free_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="or 'other' for one of your own") as error:
        require_licence(text)
    assert "\n" not in str(error.value)


def test_a_ladder_says_so_before_it_trains() -> None:
    with pytest.raises(ValueError, match="'Apache 2.0' is no identifier of a licence on the Hub"):
        PublishConfig(repo_id="org/{name}", license="Apache 2.0")
