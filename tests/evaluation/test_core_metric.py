"""CORE from answers given elsewhere."""

import random

import pytest

from hf_progressive.evaluation.core.bundle import Task
from hf_progressive.evaluation.core.evaluate import _summarize
from hf_progressive.evaluation.core.metric import CoreMetric
from hf_progressive.evaluation.core.scoring import Answer


def test_the_metric_is_the_score_that_evaluate_core_gives():
    rng = random.Random(0)
    baselines = {"copa": 0.5, "arc_easy": 0.25, "jeopardy": 0.0}
    metric, centred = CoreMetric(), []
    for label, baseline in baselines.items():
        answers = [Answer(rng.random() < 0.6, tied=False, truncated=False) for _ in range(rng.randint(5, 30))]
        task = Task(label=label, kind="schema", shots=0, delimiter=" ", baseline=baseline, sha256="", examples=())
        centred.append(_summarize(task, answers).centred)
        metric.add_batch(
            predictions=[int(answer.correct) for answer in answers],
            references=[1] * len(answers),
            tasks=[label] * len(answers),
        )
    result = metric.compute(baselines=baselines)
    assert result["core"] == pytest.approx(sum(centred) / 3)
    assert list(result["centred"].values()) == pytest.approx(centred)


def test_a_task_without_a_baseline_is_named():
    with pytest.raises(ValueError, match="baselines: has none for piqa; name the accuracy of a random guess"):
        CoreMetric().compute(predictions=[0], references=[0], tasks=["piqa"], baselines={"copa": 0.5})
