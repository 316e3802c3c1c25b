"""Tokens added to the tokenizer in the call that grows the vocabulary: rows for them, and what they cost the old."""

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_progressive import cli
from hf_progressive.data import train_tokenizer
from hf_progressive.growth import grow_checkpoint, verify_growth

TEXT = "the rung grows from the rung below"


@pytest.fixture(scope="module")
def source(parent, tmp_path_factory):
    """The parent with a tokenizer that leaves its last rows without a token."""
    folder = tmp_path_factory.mktemp("with_tokenizer") / "parent"
    shutil.copytree(parent, folder)
    grow_checkpoint(folder, folder.with_name("source"), {"vocab_size": 270}, verify=False)
    train_tokenizer([TEXT], vocab_size=268, training_bytes=1000).save_pretrained(folder.with_name("source"))
    return folder.with_name("source")


def test_the_vocabulary_grows_to_hold_the_tokens_and_old_text_pays_what_is_reported(source, tmp_path):
    tokens = ["<gene>", "ACGT", "<end of gene>", "TTAGGG"]
    report = grow_checkpoint(source, tmp_path / "child", {"n_layer": 3}, add_tokens=[*tokens, "ACGT"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "child")
    child, parent = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "child", source))
    assert len(tokenizer) == 272 == child.config.vocab_size
    assert tokenizer("a<gene>ACGT")["input_ids"][1:] == [268, 269]
    old = AutoTokenizer.from_pretrained(source)
    assert tokenizer(TEXT)["input_ids"] == old(TEXT)["input_ids"]

    check = verify_growth(source, tmp_path / "child", sequences=2, seed=3)
    generator, lost = torch.Generator().manual_seed(3), []
    for _ in range(2):
        drawn = torch.randint(270, (1, 32), generator=generator)
        with torch.no_grad():
            before, after = (model(drawn).logits[0].double().log_softmax(-1) for model in (parent, child))
        lost.append((before - after[:, :270]).mean().item())  # the same for every old token at one place
    assert check.preserved
    assert check.new_token_loss == pytest.approx(sum(lost) / 2, rel=1e-3)
    assert report.verification.new_token_loss > 0
    assert "nat a token to new tokens, on these (text=, --text: on a text)" in check.describe()

    on_text = verify_growth(source, tmp_path / "child", sequences=3, text=TEXT * 9)
    read = torch.tensor(old(TEXT * 9)["input_ids"])[: 3 * 32].split(32)
    rise = [loss_of(child, block) - loss_of(parent, block) for block in read]
    assert len(read) == 3
    assert on_text.text_tokens == 96
    assert on_text.new_token_loss == pytest.approx(sum(rise) / 3, rel=1e-3)
    assert on_text.new_token_loss != pytest.approx(check.new_token_loss, rel=1e-2)
    assert "nat a token to new tokens, on 96 tokens of the text" in on_text.describe()


def test_a_tokenizer_with_more_entries_than_rows_is_warned_of(source, tmp_path, caplog):
    grow_checkpoint(source, tmp_path / "fits", {"n_layer": 3}, verify=False)
    assert "tokenizer" not in caplog.text
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens([f"<{number}>" for number in range(5)])
    shutil.copytree(source, tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    grow_checkpoint(tmp_path / "source", tmp_path / "child", {"n_layer": 3}, verify=False)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "child")) == 273
    assert "its tokenizer has 273 entries and the grown model 270 rows for them; grow the vocab" in caplog.text
    caplog.clear()
    grow_checkpoint(tmp_path / "source", tmp_path / "wider", {"vocab_size": 273}, verify=False)
    assert "tokenizer" not in caplog.text


def loss_of(model, block):
    """The stock loss of a text's tokens, less that of the first, whose prediction nothing makes."""
    with torch.no_grad():
        logits = model(block[None]).logits[0].double()
    # The last token's prediction loses to new tokens too: any old token stands for the one that would follow.
    return torch.nn.functional.cross_entropy(logits, torch.cat([block[1:], block[:1]])).item()


def test_a_text_is_read_from_a_file_with_the_parents_tokenizer(source, parent, tmp_path, capsys):
    (tmp_path / "tokens.txt").write_text("<one>\n<two>\n<three>\n<four>\n")
    (tmp_path / "text.txt").write_text(TEXT)
    words = ["grow", str(source), str(tmp_path / "child"), "--add-tokens", str(tmp_path / "tokens.txt")]
    text = ["--text", str(tmp_path / "text.txt")]
    assert cli.main([*words, *text]) == 0
    assert "tokens of the text" in capsys.readouterr().err
    assert cli.main(["verify", str(source), str(tmp_path / "child"), *text]) == 0
    assert "tokens of the text" in capsys.readouterr().out
    for wrong, said in (
        ([*words, *text, "--no-verify", "--overwrite"], "text: is read where growth is verified"),
        (["verify", str(parent), str(source), *text], "has no tokenizer to read the text with"),
        (["verify", str(source), str(source), "--text", str(tmp_path / "none")], "none: No such file or directory"),
    ):
        assert cli.main(wrong) == cli.EXIT_BAD_INPUT
        assert said in capsys.readouterr().err


def test_rows_that_are_there_are_used_and_too_few_are_refused(source, tmp_path, capsys):
    (tmp_path / "tokens.txt").write_text("<one>\n\n<two>\n")
    grow = ["grow", str(source), str(tmp_path / "child"), "--add-tokens", str(tmp_path / "tokens.txt")]
    assert cli.main([*grow, "--set", "n_layer=3", "--no-verify"]) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "child").config.vocab_size == 270
    assert verify_growth(source, tmp_path / "child").new_token_loss == 0
    (tmp_path / "more.txt").write_text("<one>\n<two>\n<three>\n")
    grow[3:] = ["--add-tokens", str(tmp_path / "more.txt"), "--overwrite"]
    assert cli.main([*grow, "--set", "vocab_size=270"]) == cli.EXIT_BAD_INPUT
    assert "vocab_size=270: the tokenizer has 271 entries with the added tokens" in capsys.readouterr().err
    assert cli.main(grow[:3]) == cli.EXIT_BAD_INPUT
    assert "name what grows, such as --set num_hidden_layers=24, or" in capsys.readouterr().err
    assert cli.main([*grow[:3], "--method", "upcycle"]) == cli.EXIT_BAD_INPUT
    assert "name what grows, such as --set num_local_experts=8, or" in capsys.readouterr().err


def test_tokens_with_rows_of_the_parent_and_tokens_that_are_there_are_told(source, tmp_path, caplog):
    grow_checkpoint(source, tmp_path / "some", {}, add_tokens=["<1>", "<2>", "<3>"], verify=False)
    assert "has 270 rows, more than its tokenizer has tokens: 2 of 3 new tokens get rows of the parent" in caplog.text
    assert "as they are, 268 to 269" in caplog.text
    rows, old = (
        AutoModelForCausalLM.from_pretrained(folder).transformer.wte.weight for folder in (tmp_path / "some", source)
    )
    assert torch.equal(rows[:270], old)
    caplog.clear()
    grow_checkpoint(tmp_path / "some", tmp_path / "none", {"n_layer": 3}, add_tokens=["<3>"], verify=False)
    assert "its tokenizer has all of the tokens already; none is added" in caplog.text
    caplog.clear()
    grow_checkpoint(tmp_path / "some", tmp_path / "more", {}, add_tokens=["<4>"], verify=False)
    assert caplog.text == ""


def test_a_file_of_tokens_may_begin_with_a_mark_and_must_hold_one(source, tmp_path, capsys):
    (tmp_path / "marked.txt").write_bytes("<one>\r\n<two>\r\n".encode("utf-8-sig"))
    (tmp_path / "blank.txt").write_text("\n  \n")
    grow = ["grow", str(source), str(tmp_path / "child"), "--no-verify", "--add-tokens"]
    assert cli.main([*grow, str(tmp_path / "blank.txt")]) == cli.EXIT_BAD_INPUT
    assert "blank.txt: there is no token in it; give one a line" in capsys.readouterr().err
    assert not (tmp_path / "child").exists()
    assert cli.main([*grow, str(tmp_path / "marked.txt")]) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "child")("<one><two>")["input_ids"][-2:] == [268, 269]


def test_a_damaged_tokenizer_is_named(source, tmp_path):
    shutil.copytree(source, tmp_path / "source")
    (tmp_path / "source" / "tokenizer.json").write_text("{")
    with pytest.raises(
        ValueError, match="source: its tokenizer: not valid .*; save it again, or fetch its files again"
    ):
        grow_checkpoint(tmp_path / "source", tmp_path / "child", {}, add_tokens=["x"])


def test_a_parent_without_a_tokenizer_is_told_so(parent, tmp_path):
    with pytest.raises(ValueError, match="has no tokenizer that tokens can be added to"):
        grow_checkpoint(parent, tmp_path / "child", {}, add_tokens=["x"])
    with pytest.raises(ValueError, match="add_tokens is the text '<es>'; give a list of tokens"):
        grow_checkpoint(parent, tmp_path / "child", {}, add_tokens="<es>")  # or '<', 'e', 's' and '>' would be added
    with pytest.raises(ValueError, match="a token is empty; give one a line"):
        grow_checkpoint(parent, tmp_path / "child", {}, add_tokens=[" "])
    with pytest.raises(ValueError, match="add_tokens holds 3; give texts, one a token"):
        grow_checkpoint(parent, tmp_path / "child", {}, add_tokens=["x", 3])


def test_tokens_may_come_from_an_iterator(source, tmp_path):
    grow_checkpoint(source, tmp_path / "child", {}, add_tokens=(token for token in ["<a>", "<b>"]), verify=False)
    assert {"<a>", "<b>"} <= AutoTokenizer.from_pretrained(tmp_path / "child").get_vocab().keys()
