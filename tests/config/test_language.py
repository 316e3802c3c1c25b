"""Languages by the codes that the Hub takes."""

import pytest

from hf_progressive.config.after_training import PublishConfig
from hf_progressive.config.language import require_languages


def test_codes_pass() -> None:
    require_languages([])
    require_languages(["en", "deu", "code", "multilingual"])
    assert PublishConfig(repo_id="ORG/x-{name}", language=("en", "code")).language == ("en", "code")


@pytest.mark.parametrize("text", ["English", "EN", "zh-CN", "e", "", "en\n"])
def test_another_text_is_refused_before_anything_is_trained(text: str) -> None:
    with pytest.raises(
        ValueError, match="is no ISO 639 code, two or three small letters; give one such as 'en'"
    ) as error:
        PublishConfig(repo_id="ORG/x-{name}", language=("en", text))
    assert "\n" not in str(error.value)
    assert repr(text) in str(error.value)
