"""The figures show the records' numbers, and no text of theirs covers another."""

import dataclasses
import itertools

import pytest

from hf_progressive.records.ladder import read_run
from hf_progressive.report.figures.costs import draw_costs
from hf_progressive.report.figures.curves import draw_curves
from hf_progressive.report.figures.overview import draw_overview
from hf_progressive.report.figures.penalty import draw_penalty, penalized
from hf_progressive.report.figures.style import settle

TERA = 1e12


@pytest.fixture
def rungs(run, records):
    return read_run(run(records())).rungs


def long_ladder(rungs, count):
    """Nine rungs from three, with costs that grow as the real ladder's do."""

    def scaled(rung, factor):
        point = {"curve": tuple(dataclasses.replace(p, flops=p.flops * factor) for p in rung.curve)}
        cold = dataclasses.replace(
            rung.cold,
            flops=rung.cold.flops * factor,
            curve=tuple(dataclasses.replace(p, flops=p.flops * factor) for p in rung.cold.curve),
        )
        flops = dataclasses.replace(rung.flops, train=rung.flops.train * factor)
        return {**point, "cold": cold, "flops": flops}

    grown = rungs[1]
    others = [
        dataclasses.replace(
            grown, name=f"d{11 + i}", flops_to_match=grown.flops_to_match * 1.4**i, **scaled(grown, 1.4**i)
        )
        for i in range(count - 1)
    ]
    return [rungs[0], *others]


def test_curves_mark_the_crossing_where_the_record_has_it(rungs):
    panels = draw_curves(rungs).axes
    assert [panel.get_title(loc="left") for panel in panels] == ["l5w96", "l5w96 → l6w96", "l6w96 → l6w112"]
    for panel, rung in zip(panels[1:], rungs[1:], strict=True):
        lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in panel.lines]
        for curve in (rung.curve, rung.cold.curve):
            expected = ([p.flops / TERA for p in curve], [p.bits_per_byte for p in curve])
            assert any(expected == line for line in lines)
        assert ([rung.flops_to_match / TERA], [rung.cold.bits_per_byte]) in lines
        low, high = panel.get_ylim()
        assert all(low < p.bits_per_byte < high for p in rung.curve)


def test_bars_are_as_long_as_the_flops(rungs):
    left, right = draw_costs(rungs).axes
    widths = [patch.get_width() * TERA for patch in left.patches]
    for rung in rungs:
        expected = [rung.cold_cost]
        expected += [rung.flops.fisher + rung.flops.subspace, rung.flops.train] if rung.grown else []
        for flops in expected:
            assert any(width == pytest.approx(flops) for width in widths)
    ends = {}
    for patch in right.patches:
        row = round(patch.get_y() + patch.get_height() / 2)
        ends[row] = max(ends.get(row, 0.0), patch.get_x() + patch.get_width())
    cold, trained, to_match, alone = (ends[row] * TERA for row in range(4))
    assert cold == pytest.approx(sum(rung.cold_cost for rung in rungs))
    assert trained == pytest.approx(sum(rung.flops.spent for rung in rungs))
    assert to_match == pytest.approx(sum(rung.flops.spent for rung in rungs[:-1]) + rungs[-1].flops_to_match)
    assert alone == pytest.approx(rungs[-1].cold.flops)


def test_penalty_is_drawn_for_the_rungs_that_logged_it(run, records, rungs):
    assert [rung.name for rung in penalized(rungs)] == ["l6w96", "l6w112"]
    panels = draw_penalty(penalized(rungs)).axes
    entries = rungs[1].training_log
    assert list(panels[0].lines[0].get_ydata()) == [entry["phi/ewc"] for entry in entries]
    weights = next(panel for panel in panels if panel.get_xlabel() == "optimizer step")
    assert list(weights.lines[0].get_ydata()) == [entry["phi/lambda"] / 0.1 for entry in entries]


def unseen_labels(figure):
    """Return the labels of ticks beyond their axis, which exist and are not drawn."""
    axes = [
        (axis, sorted(limits))
        for a in figure.axes
        for axis, limits in ((a.xaxis, a.get_xlim()), (a.yaxis, a.get_ylim()))
    ]
    return {
        id(label)
        for axis, (low, high) in axes
        for place, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
        if not low <= place <= high
    }


def overlapping_texts(figure):
    """Return the pairs of texts whose boxes, but for a hair's breadth, share an area."""
    from matplotlib.text import Text

    settle(figure)
    unseen = unseen_labels(figure)
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    boxes = [
        (text.get_text(), text.get_window_extent().shrunk(0.96, 0.9))
        for text in texts
        if id(text) not in unseen and (text.axes is None or text.axes.axison)
    ]
    pairs = itertools.combinations(boxes, 2)
    return [(text, other) for (text, box), (other, other_box) in pairs if box.overlaps(other_box)]


def draw_summary(rungs):
    return draw_overview(
        rungs, "The last model for 1.05 times its price from scratch, all 3 models for 60 % of theirs.", "a caption"
    )


@pytest.mark.parametrize(
    ("kind", "draws"),
    [
        ("nearly matched", [draw_curves, draw_costs]),
        ("planned", [draw_costs, draw_summary]),
        ("nine rungs", [draw_costs, draw_summary]),
        ("long names", [draw_curves, draw_costs]),
    ],
)
def test_no_text_covers_another(run, records, kind, draws):
    made = {
        "nearly matched": lambda: records(floors=(1.9905, 1.9605)),
        "planned": lambda: records(cold=False),
    }.get(kind, records)()
    rungs = list(read_run(run(made)).rungs)
    if kind == "nine rungs":
        rungs = long_ladder(rungs, 9)
    if kind == "long names":
        rungs = [dataclasses.replace(rung, name=f"qwen3-base-{rung.name}") for rung in rungs]
    for draw in draws:
        assert overlapping_texts(draw(rungs)) == []
