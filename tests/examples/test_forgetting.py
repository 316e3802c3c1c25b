"""The comparison of ways to forget less: its data, its sums, and a small run of the whole."""

import json
import math
import runpy
import statistics
import struct
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from documents.told import EVIDENCE, README, cells, percent, short
from domains import in_invented_language, invented_word, read_texts, translated_texts
from forms import FORMS, INTERPOLATION, Knowledge, interpolated
from pareto import best_of, summarise, with_replay
from torch import nn

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "forgetting"
QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, 97.5 %, by the number of seeds


def row(form, strength, seed, old, new):
    return {"transfer": "a", "form": form, "strength": strength, "seed": seed, "old": old, "new": new, "seconds": 1.0}


def test_gains_are_paired_by_seed_and_each_way_stands_at_its_best_strength():
    rows = [
        row("free", 0.0, 0, 4.0, 2.0), row("free", 0.0, 1, 6.0, 2.0),
        row("replay", 0.01, 0, 3.0, 2.0), row("replay", 0.01, 1, 5.0, 2.0),
        row("replay", 0.05, 0, 2.0, 2.0), row("replay", 0.05, 1, 5.0, 2.0),
    ]  # fmt: skip
    first, second = best_of(summarise(rows))
    assert (first["form"], first["strength"], first["seeds"]) == ("replay", 0.05, 2)
    assert (first["old"], first["new"], first["both"]) == (3.5, 2.0, 2.75)
    assert first["gain"] == pytest.approx((1.0 + 0.5) / 2)
    assert first["gain_error"] == pytest.approx(0.25)
    assert (second["form"], second["gain"]) == ("free", 0.0)


def test_replay_is_a_share_of_old_blocks_in_the_same_number():
    new, old = torch.zeros(300, 2), torch.arange(1.0, 101.0)[:, None].expand(100, 2)
    mixed = with_replay(new, old, 0.05, 200, seed=0)
    assert mixed.shape == (200, 2)
    replayed = mixed[mixed[:, 0] > 0, 0]
    assert len(set(replayed.tolist())) == len(replayed) == 10


def test_the_invented_language_has_a_word_of_its_own_for_each_word_and_the_order_reversed():
    first, second = in_invented_language("the sea is the sea").split()[:2]
    assert in_invented_language("the sea is the sea").split() == [first, second, invented_word("is"), first, second]
    assert second == invented_word("the") != "the"


def test_interpolation_is_a_share_of_the_way_from_the_parent():
    model = nn.Linear(1, 1)
    anchor = {name: parameter.detach() - 4.0 for name, parameter in model.named_parameters()}
    known = Knowledge(parent=model, anchor=anchor, empirical={}, of_optimizer={}, subspace={}, written=torch.empty(0))
    for name, parameter in interpolated(model, known, 0.25).named_parameters():
        torch.testing.assert_close(parameter, anchor[name] + 1.0)


def catalogue(messages):
    """A GNU message catalogue, as `msgfmt` writes it."""
    strings = [text.encode() for text in (*messages, *messages.values())]
    start = 28 + 8 * len(strings)
    starts = [start + sum(len(before) + 1 for before in strings[:index]) for index in range(len(strings))]
    table = [number for text, place in zip(strings, starts, strict=True) for number in (len(text), place)]
    head = (0x950412DE, 0, len(messages), 28, 28 + 8 * len(messages), 0, 0)
    return struct.pack(f"<{7 + len(table)}I", *head, *table) + b"".join(text + b"\0" for text in strings)


def test_a_natural_language_is_what_programs_say_in_it(tmp_path):
    long = "Le fichier donné %s n'est pas compris sur la ligne de commande"
    said = {"": "Content-Type: text/plain; charset=UTF-8; of no interest", "a": long, "b": "trop court"}
    said |= {f"{number}": f"{long} : {number}" for number in range(30)} | {"c\0d": f"{long} au singulier\0au pluriel"}
    said["The same in both languages, as names of programs are"] = (
        "The same in both languages, as names of programs are"
    )
    said["d"] = f"<b>Du gras.</b><br/>{long}"
    of_system, of_package = tmp_path / "system", tmp_path / "packages" / "one" / "conf" / "locale"
    for place, name, messages in ((of_system, "one", said), (of_package, "two", {"a": long, "e": f"{long}, dit-il"})):
        folder = place / "fr" / "LC_MESSAGES"
        folder.mkdir(parents=True)
        (folder / f"{name}.mo").write_bytes(catalogue(messages))
    documents = translated_texts("fr", 10**6, [of_system, tmp_path / "packages"])
    assert "\n".join(documents).split("\n") == [
        long, *(f"{long} : {number}" for number in range(30)), f"{long} au singulier",
        f" Du gras.  {long}", f"{long}, dit-il",
    ]  # fmt: skip
    assert len(documents) == 3
    assert translated_texts("fr", 100, [of_system]) == documents[:1]
    with pytest.raises(
        ValueError, match=r"no messages in 'xx' are in .*system; pass other --catalogues, or --language"
    ):
        translated_texts("xx", 100, [of_system])


@pytest.mark.parametrize("suffix", [".txt", ".parquet"])
def test_texts_of_ones_own_are_read_up_to_a_length(tmp_path, suffix):
    texts = [f"Document {number} speaks of the sea." for number in range(80)]
    path = tmp_path / f"english{suffix}"
    if suffix == ".txt":
        path.write_text("\n\n".join(texts), encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "number": list(range(80))}), path)
    assert list(read_texts(path, 10**6)) == texts
    assert list(read_texts(path, len(texts[0]) + 1)) == texts[:2]


def recorded(name, seeds, transfer):
    """A record's rows of one transfer and some seeds, by way and strength."""
    record, found = json.loads((FOLDER / "results" / f"{name}.json").read_text()), {}
    for row in record["rows"]:
        if row["seed"] in seeds and row["transfer"] == f"English → {transfer}":
            found.setdefault((row["form"], row["strength"]), []).append(row)
    return found


def french_rows(seeds):
    return recorded("pareto_fr", seeds, "fr")


def gains(rows, way):
    return [(a["old"] + a["new"] - b["old"] - b["new"]) / 2 for a, b in zip(rows["free", 0.0], rows[way], strict=True)]


def best_strengths(rows):
    """Of every form the way whose mean gain is the largest."""
    means = {way: statistics.fmean(gains(rows, way)) for way in rows}
    forms = dict.fromkeys(form for form, _ in rows)
    return [max((way for way in rows if way[0] == form), key=means.__getitem__) for form in forms]


def in_log(rows, way):
    """What the log says of a way: both losses, the gain with its interval, and what is kept."""
    losses = [f"{statistics.fmean(row[domain] for row in rows[way]):.3f}" for domain in ("old", "new")]
    return [*losses, gain_in_log(rows, way), f"{kept(rows, way):.0%}"]


def kept(rows, way):
    """Which share of the old domain that free training loses a way keeps."""
    lines = zip(rows["free", 0.0], rows[way], rows["parent", 0.0], strict=True)
    return statistics.fmean((free["old"] - own["old"]) / (free["old"] - parent["old"]) for free, own, parent in lines)


def gain_in_log(rows, way):
    return mean_and_error(gains(rows, way))


def mean_and_error(found):
    error = QUANTILES[len(found)] * statistics.stdev(found) / math.sqrt(len(found))
    signs = [f"{number:.3f}".replace("0.", ".", 1).replace("-", "−") for number in (statistics.fmean(found), error)]
    return " ± ".join(signs)


def table_of_log(title):
    section = (ROOT / "docs" / "LOG.md").read_text(encoding="utf-8").partition(f". {title}\n")[2]
    lines = [line.split("|")[1:-1] for line in section.partition("\n## ")[0].splitlines() if line[:1] == "|"]
    cells = [[cell.strip().replace(" %", "%") for cell in line] for line in lines[2:]]
    return {(form, float(strength or 0)): rest for form, strength, *rest in cells}


def test_the_log_tells_of_french_what_the_record_has():
    rows = french_rows(range(3))
    told = table_of_log("Does it hold on natural French?")
    assert {form for form, _ in told} == {form for form, _ in rows}
    assert told == {way: in_log(rows, way) for way in told}


def test_the_log_tells_of_the_best_strengths_on_french_what_the_record_has():
    rows = french_rows(range(5))
    chosen = {form: (form, strength) for form, strength in best_strengths(french_rows(range(2)))}
    others = french_rows(range(2, 5))
    told = table_of_log("And on French with each way at the best of three strengths?")
    assert told == {
        way: [*in_log(rows, way), f"{gain_in_log(others, chosen[way[0]])} ({chosen[way[0]][1]:g})"]
        for way in best_strengths(rows)
        if way[0] not in ("free", "parent")
    }


@pytest.mark.parametrize(
    ("row", "form", "strengths"),
    [
        ("free training", "free", [0.0]),
        ("divergence from the parent on texts it wrote, weight 1", "divergence, own texts", [1.0]),
        ("replay of 5 %", "replay", [0.05]),
        ("interpolating parent and child, half way", "interpolation", [0.5]),
        ("EWC, λ = 30", "EWC", [30.0]),
        ("a lower rate, a quarter", "lower rate", [0.25]),
        ("subspace outside", "subspace, outside", [0.01, 0.1, 1.0]),
    ],
)
def test_the_evidence_has_what_each_way_keeps(row, form, strengths):
    expected, best = [row], []
    for transfer in ("Python", "invented language"):
        rows = recorded("pareto", range(3), transfer)
        shares = sorted(kept(rows, (form, strength)) for strength in strengths)
        losses = sorted(statistics.fmean(line["new"] for line in rows[form, strength]) for strength in strengths)
        expected += [
            " to ".join(dict.fromkeys(percent(share) for share in (shares[0], shares[-1]))) if form != "free" else "0",
            " to ".join(dict.fromkeys(f"{loss:.3f}" for loss in (losses[0], losses[-1]))),
        ]
        best += [strength for name, strength in best_strengths(rows) if name == form]
    assert cells(EVIDENCE, row, after="## A change of domain") == expected
    assert len(strengths) > 1 or min(best) == strengths[0]


FRENCH = {
    "free training": ("free", 0.0),
    "divergence, weight 1": ("divergence, own texts", 1.0),
    "replay of 5 %": ("replay", 0.05),
    "EWC with Ω of the optimizer, λ = 3": ("EWC, Ω of the optimizer", 3.0),
    "interpolating, a quarter of the way back": ("interpolation", 0.75),
    "EWC, λ = 30": ("EWC", 30.0),
    "L2-SP, λ = .1": ("L2-SP", 0.1),
    "EWC, proximal, λ = 10": ("EWC, proximal", 10.0),
    "subspace inside, γ = .1": ("subspace, inside", 0.1),
    "subspace outside, γ = .01": ("subspace, outside", 0.01),
    "a lower rate, a half": ("lower rate", 0.5),
}


def test_the_evidence_has_what_each_way_keeps_on_french():
    rows = french_rows(range(5))
    assert {*FRENCH.values(), ("parent", 0.0)} == set(best_strengths(rows))
    for row, way in FRENCH.items():
        _, loss, gain, share = in_log(rows, way)
        expected = [row, share.replace("%", " %"), loss, gain] if way[0] != "free" else [row, "0", loss, "0"]
        assert cells(EVIDENCE, row, after="On natural French") == expected
    ewc, *others = (gains(rows, way) for way in (("EWC", 30.0), ("interpolation", 0.75), ("L2-SP", 0.1)))
    told = [mean_and_error([a - b for a, b in zip(ewc, other, strict=True)]) for other in others]
    text = " ".join(EVIDENCE.read_text(encoding="utf-8").split())
    assert f"child after training ({told[0]}), nor than L2-SP ({told[1]})." in text


def test_the_readme_has_what_predictions_and_weights_keep():
    rows = recorded("pareto", range(3), "Python")
    free = statistics.fmean(row["new"] for row in rows["free", 0.0])
    predictions, weights = ("divergence, own texts", 1.0), ("EWC", 30.0)
    more = [statistics.fmean(row["new"] for row in rows[way]) / free - 1 for way in (predictions, weights)]
    _, told = cells(README, "training on with other texts (two-layer GPT-2, to Python, three seeds): holding")
    of_new = f"{short(100 * more[0], 1)} % more loss on the new"
    assert told == f"keeps {percent(kept(rows, predictions))} of what is lost, for {of_new}"
    _, told = cells(README, "the same by EWC |")
    assert told.startswith(f"{percent(kept(rows, weights))}, for {percent(more[1])}: no better than interpolating")
    assert statistics.fmean(gains(rows, weights)) < statistics.fmean(gains(rows, ("interpolation", 0.5)))


@pytest.mark.slow
def test_it_runs_offline_and_tells_every_way_of_both_transfers(monkeypatch, capsys, tmp_path):
    small = [
        "--layers", "1", "--width", "32", "--vocabulary", "300", "--characters", "300000", "--steps", "4", "1",
        "--processes", "1", "--seeds", "0", "--output", str(tmp_path),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(FOLDER / "pareto.py"), *small])
    runpy.run_path(str(FOLDER / "pareto.py"), run_name="__main__")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = {"parent", "free", INTERPOLATION.name, *(form.name for form in FORMS)}
    assert {(point["transfer"], point["form"]) for point in told["best"]} == {
        (transfer, name) for transfer in ("English → Python", "English → invented language") for name in names
    }
    record = json.loads((tmp_path / "pareto.json").read_text())
    assert len(record["rows"]) == 2 * (2 + 3 * (len(names) - 2))
    assert (tmp_path / "pareto.png").stat().st_size > 10_000
