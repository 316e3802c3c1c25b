"""CORE as a metric of the `evaluate` library, for answers that come from elsewhere.

`hf_progressive.evaluation.core.evaluate_core` asks a model itself. Whoever has the answers already, from another
engine or another tool, adds them here task by task and gets the same centred mean.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate

_DESCRIPTION = """\
CORE: the mean over tasks of (accuracy - baseline) / (1 - baseline), the baseline being the accuracy of a random guess.
"""

_INPUTS = """\
predictions: the option chosen, per example; in language modelling 0 where every token was the arg max, else 1.
references: the right option, per example; 0 in language modelling.
tasks: the label of the task, per example.
baselines: accuracy of a random guess, in [0, 1), by label.
"""

_CITATION = "Li et al. 2024, DataComp-LM, https://arxiv.org/abs/2406.11794"


class CoreMetric(evaluate.Metric):
    """Centred accuracy over tasks, fed with `add_batch` or `compute`.

    >>> metric = CoreMetric()
    >>> metric.add_batch(predictions=[0, 1, 1, 0], references=[0, 1, 1, 1], tasks=["copa"] * 4)
    >>> metric.add_batch(predictions=[0, 1], references=[0, 0], tasks=["jeopardy"] * 2)
    >>> metric.compute(baselines={"copa": 0.5, "jeopardy": 0.0})
    {'core': 0.5, 'centred': {'copa': 0.5, 'jeopardy': 0.5}}
    """

    def _info(self) -> Any:
        features = {"predictions": "int64", "references": "int64", "tasks": "string"}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({name: datasets.Value(dtype) for name, dtype in features.items()}),
        )

    def _compute(
        self,
        predictions: Sequence[int],
        references: Sequence[int],
        tasks: Sequence[str],
        baselines: Mapping[str, float],
    ) -> dict[str, Any]:
        hits: dict[str, list[bool]] = defaultdict(list)
        for prediction, reference, task in zip(predictions, references, tasks, strict=True):
            hits[task].append(prediction == reference)
        missing = sorted(set(hits) - set(baselines))
        if missing:
            raise ValueError(
                f"baselines: has none for {', '.join(missing)}; name the accuracy of a random guess for each"
            )
        centred = {
            task: (sum(answers) / len(answers) - baselines[task]) / (1 - baselines[task])
            for task, answers in hits.items()
        }
        return {"core": sum(centred.values()) / len(centred), "centred": centred}
