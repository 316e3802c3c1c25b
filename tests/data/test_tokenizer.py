"""Tokenizers: trained alike everywhere, lossless, and with the true bytes of every token."""

import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_progressive.config import TokenizerConfig, load_ladder_config
from hf_progressive.data import prepare
from hf_progressive.data.tokenizer import (
    END_OF_TEXT,
    LONGEST_WORD,
    cut_long_words,
    encode_documents,
    load_tokenizer,
    token_byte_lengths,
    train_tokenizer,
    vocabulary_size,
    without_padding,
)
from hf_progressive.planning.ladder_plan import plan_ladder

TEXTS = ["the rung grows from the rung below the rung", "naïve 漢字 and the 🙂 below", "    return the\n\tgrown"] * 3


def trained(vocab_size=300):
    return train_tokenizer(TEXTS, vocab_size=vocab_size, training_bytes=10_000)


def sentencepiece_like():
    """A tokenizer in the manner of Llama 2: spaces as ▁, unknown characters as bytes, a space in front."""
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁eth", "▁t", "he", "▁the"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he")]
    backend = Tokenizer(
        models.BPE({token: i for i, token in enumerate(vocabulary)}, merges, byte_fallback=True, unk_token="<unk>")
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def byte_level_with_added_tokens():
    tokenizer = trained()
    tokenizer.add_tokens(["€€"])
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|user|>")]})
    return tokenizer


def words(unknown="[UNK]"):
    backend = Tokenizer(models.WordLevel(unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=[unknown, END_OF_TEXT]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=unknown, eos_token=END_OF_TEXT)


@given(st.text())
@settings(max_examples=60)
def test_every_text_is_spelled_by_tokens_of_its_bytes(text):
    tokenizer = test_every_text_is_spelled_by_tokens_of_its_bytes.tokenizer
    ids = tokenizer(text.encode("utf-8", "ignore").decode("utf-8"), add_special_tokens=False)["input_ids"]
    expected = text.encode("utf-8", "ignore")
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == expected.decode("utf-8")
    assert token_byte_lengths(tokenizer)[ids].sum() == len(expected)


test_every_text_is_spelled_by_tokens_of_its_bytes.tokenizer = trained()


@pytest.mark.parametrize("text", ["the hat", " the\nthe", "é 漢 🙂", ""])
def test_byte_fallback_tokens_count_their_bytes_and_the_space_in_front(text):
    tokenizer = sentencepiece_like()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    prefix = 1 if text else 0
    assert token_byte_lengths(tokenizer)[ids].sum() == len(text.encode("utf-8")) + prefix


def test_special_tokens_stand_for_no_text_and_added_ones_for_theirs():
    tokenizer = byte_level_with_added_tokens()
    lengths = token_byte_lengths(tokenizer)
    assert lengths[tokenizer.convert_tokens_to_ids([END_OF_TEXT, "<|user|>", "€€"])].tolist() == [0, 0, 6]
    assert len(lengths) == vocabulary_size(tokenizer) == 302


def test_byte_lengths_agree_with_the_bytes_each_token_decodes_to():
    tokenizer = trained()
    lengths = token_byte_lengths(tokenizer)
    whole = [i for i in range(1, 300) if "�" not in tokenizer.decode([i])]  # not a part of a character
    assert len(whole) > 150
    assert lengths[whole].tolist() == [len(tokenizer.decode([i]).encode("utf-8")) for i in whole]


def test_tokenizer_that_loses_text_is_refused():
    with pytest.raises(ValueError, match=r"accounts for \d+ of the 94 bytes of a test text; use one that keeps every"):
        token_byte_lengths(words())


def test_a_tokenizer_that_loses_text_is_refused_before_a_corpus_is_tokenized(tmp_path, monkeypatch):
    words().save_pretrained(tmp_path / "words")
    name = str(tmp_path / "words")
    said = rf"^data\.tokenizer\.name: the tokenizer '{re.escape(name)}' accounts for \d+ of the 94 bytes"
    with pytest.raises(ValueError, match=said):
        load_tokenizer(TokenizerConfig(name=name), ())
    config = load_ladder_config("ladder_tiny", [f"data.tokenizer={{name: {name}}}"])
    with pytest.raises(ValueError, match=said[1:]):
        plan_ladder(config)
    monkeypatch.setattr(prepare, "_tokenize", None)
    with pytest.raises(ValueError, match=said):
        prepare.prepare_corpus(config.corpus, 16, tmp_path / "data")
    assert {path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")} == {"words"}


def test_training_gives_the_same_tokenizer_in_another_process(tmp_path):
    trained().save_pretrained(tmp_path / "here")
    script = "from tests.data.test_tokenizer import trained; import sys; trained().save_pretrained(sys.argv[1])"  #
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "there")], check=True, timeout=300)
    here, there = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("here", "there"))
    assert here == there


def test_saved_tokenizer_loads_with_the_stock_class(tmp_path):
    trained().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.bos_token == loaded.eos_token == END_OF_TEXT
    assert len(loaded) == vocabulary_size(loaded) == 300
    assert loaded(TEXTS[1])["input_ids"] == trained()(TEXTS[1])["input_ids"]


def test_documents_end_with_the_end_of_text_token():
    tokenizer = trained()
    first, second = encode_documents(tokenizer, ["the rung", "grows"])
    assert (first[-1], second[-1]) == (tokenizer.eos_token_id, tokenizer.eos_token_id)
    assert tokenizer.decode(first[:-1]) == "the rung"


def test_name_of_a_special_token_in_a_document_is_text():
    tokenizer = trained()
    text = f"a {END_OF_TEXT} b"
    (document,) = encode_documents(tokenizer, [text])
    assert document.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(document[:-1]) == text
    assert token_byte_lengths(tokenizer)[document].sum() == len(text)


def test_documents_are_not_truncated_whatever_the_tokenizer_was_saved_with():
    tokenizer = trained()
    tokenizer(["the rung"], truncation=True, max_length=2, padding=False)
    (document,) = encode_documents(tokenizer, TEXTS[:1])
    assert tokenizer.decode(document[:-1]) == TEXTS[0]


def test_training_reads_no_more_text_than_it_may():
    def texts():
        yield from ["aaaa aaaa aaaa"] * 5
        raise AssertionError("read on")

    assert len(train_tokenizer(texts(), vocab_size=258, training_bytes=60)) == 258


def test_tokenizer_is_loaded_from_a_folder(tmp_path):
    trained().save_pretrained(tmp_path)
    loaded = load_tokenizer(TokenizerConfig(name=str(tmp_path)), texts=iter(()))
    assert loaded.get_vocab() == trained().get_vocab()


def test_mistakes_are_named_in_one_line(tmp_path):
    no_end = words()
    no_end.eos_token = None
    no_end.save_pretrained(tmp_path)
    cases = {
        TokenizerConfig(vocab_size=5000): r"the corpus yields \d+ entries only, not 5000; lower vocab_size to that",
        TokenizerConfig(name=str(tmp_path)): r"has no end-of-text token to separate documents; set its eos_token",
        TokenizerConfig(name=str(tmp_path / "absent")): r"data.tokenizer.name: cannot load '.*absent': ",
        TokenizerConfig(
            name="nobody/nothing"
        ): r"data.tokenizer.name: cannot load 'nobody/nothing': .*; there is no folder nobody/nothing here",
    }
    for config, message in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            load_tokenizer(config, TEXTS)
        assert "\n" not in str(caught.value)


def test_ids_left_out_still_need_rows():
    tokenizer = trained()
    assert vocabulary_size(tokenizer) == np.array(list(tokenizer.get_vocab().values())).max() + 1


@given(st.lists(st.tuples(st.sampled_from("aß1 -_"), st.integers(1, 2500)), max_size=6))
def test_long_words_are_cut_and_nothing_else(runs):
    text = "".join(character * count for character, count in runs)
    pieces = cut_long_words(text)
    assert "".join(pieces) == text
    for piece in pieces:
        words = re.findall(r"[^\W\d_]+|\d+|\s+|[^\w\s]+", piece.replace("_", "-"))
        assert all(len(word) <= LONGEST_WORD for word in words)
    if all(count < LONGEST_WORD // 7 for _, count in runs):
        assert pieces == [text]


def test_a_trained_tokenizer_has_the_tokens_that_other_tools_ask_for_at_no_entry_more(tmp_path):
    tokenizer = trained()
    plain = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT
    )
    for folder, each in (("new", tokenizer), ("plain", plain)):
        each.save_pretrained(tmp_path / folder)
    assert len({(tmp_path / folder / "tokenizer.json").read_bytes() for folder in ("new", "plain")}) == 1
    read = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert (read.unk_token_id, read.pad_token_id) == (read.eos_token_id, read.eos_token_id)
    assert read(TEXTS)["input_ids"] == plain(TEXTS)["input_ids"]
    assert read(["a", "a b c"], padding=True)["attention_mask"][0][-1] == 0


def test_only_padding_with_the_end_of_text_token_is_taken_off():
    tokenizer = trained()
    assert without_padding(tokenizer).pad_token is None
    assert tokenizer.pad_token == END_OF_TEXT
    apart = trained()
    apart.add_special_tokens({"pad_token": "<pad>"})
    assert without_padding(apart) is apart
