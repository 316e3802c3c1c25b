"""A group of models, from the plan to the finished models."""

from collections.abc import Callable, Iterator, Sequence

from architectures import Parts, initial
from measured import Model
from network import Execution, Network
from packed_corpus import Blocks
from stacked_growth import grow
from stacked_training import WARMUP_STEPS, StackedTraining, reading_of, step_table
from trunks import Group, Trunk

from hf_progressive import storage

JUMP_BLOCKS = 128  # of the validation part, before and after a growth
GROWTH_SALT = 31

Emit = Callable[[Trunk, Sequence[Model]], None]


class GroupRun:
    """One group on one device.

    Args:
        group: The group.
        blocks: What is read.
        emit: Takes the models that are finished together.
        execution: How the arithmetic is carried out.
    """

    def __init__(self, group: Group, blocks: Blocks, emit: Emit, execution: Execution) -> None:
        self.group, self.trunk, self.blocks, self.emit = group, group.trunk, blocks, emit
        self.seeds = [seed for seed, _ in group.models]
        self.longest = max(group.end(fraction) for fraction in group.fractions)
        self.reading = reading_of(
            blocks.train, self.seeds, (self.longest + WARMUP_STEPS + 1) * self.trunk.batch
        )  # what is recorded at the end reads on
        device = blocks.train.device
        self.network = Network(self.trunk.architecture(0), device, execution)
        weights = initial(self.network.architecture, self.seeds)
        self.training = self._begin(Parts(*(part.to(device) for part in weights)))
        self.stage, self.step, self.flops = 0, 0, 0.0
        self.grown_at: int | None = None
        self.growths: list[list[tuple[float, float]]] = [[] for _ in self.seeds]

    def run(self) -> Iterator[None]:
        """Train, grow and finish, pausing now and then so that other groups can queue their steps."""
        group = self.group
        self.training.record()
        for stage in self.trunk.stages[:-1]:
            # The full budget's own decay may begin before the last growth.
            yield from self._train(group.end(stage.until), finish=group.fractions[-1])
            self._grow()
        for fraction in group.fractions:
            yield from self._train(group.end(fraction) - group.decay_steps(fraction), finish=None)
            last = fraction == group.fractions[-1]
            before = (self.step, self.flops, [] if last else self.training.saved())
            yield from self._train(group.end(fraction), finish=fraction)
            self._finish(fraction)
            if not last:
                self.step, self.flops, saved = before
                self.training.restore(saved)
            yield

    def _begin(self, weights: Parts) -> StackedTraining:
        return StackedTraining(self.network, weights, self.reading, batch=self.trunk.batch, longest=self.longest)

    def _train(self, until: int, *, finish: float | None) -> Iterator[None]:
        """Train until a step, at a constant rate or along the decay that ends at a share of the budget."""
        if until <= self.step:
            return
        table = step_table(
            self.group,
            self.stage,
            self.step,
            until,
            finished_at=None if finish is None else self.group.end(finish),
            decay_steps=1 if finish is None else self.group.decay_steps(finish),
            grown_at=self.grown_at,
        )
        yield from self.training.run(table)
        tokens = (until - self.step) * self.trunk.step_tokens
        self.flops += tokens * self.network.architecture.flops_per_token
        self.step = until

    def _bits_per_byte(self, blocks: int | None = None) -> list[float]:
        validation = self.blocks.validation[:blocks]
        return self.network.bits_per_byte(self.training.weights, validation, self.blocks.byte_lengths)

    def _grow(self) -> None:
        before = self._bits_per_byte(JUMP_BLOCKS)
        old = self.training
        grown = grow(
            self.network,
            self.trunk.architecture(self.stage + 1),
            self.trunk,
            old.weights,
            old.first_moments,
            old.second_moments,
            seeds=self.seeds,
            salt=GROWTH_SALT * self.stage,
        )
        old.graph = None  # its memory is free before the next one's is taken
        self.network = grown.network
        self.training = self._begin(grown.weights)
        for kept, values in (
            (self.training.first_moments, grown.first_moments),
            (self.training.second_moments, grown.second_moments),
        ):
            for tensor, value in zip(kept, values, strict=True):
                tensor.copy_(value)
        self.training.new = grown.new
        self.training.step.copy_(old.step)
        self.training.separate_rates = self.trunk.separate_rates
        self.stage, self.grown_at = self.stage + 1, self.step
        for model, pair in zip(self.growths, zip(before, self._bits_per_byte(JUMP_BLOCKS), strict=True), strict=True):
            model.append((round(pair[0], 4), round(pair[1], 4)))
        self.training.record()

    def _finish(self, fraction: float) -> None:
        reached = [storage.finite_or_none(round(value, 5)) for value in self._bits_per_byte()]
        cost = round(self.flops / self.trunk.full_flops, 5)
        models = [
            Model(seed, rate, fraction, value, cost, tuple(growths))
            for (seed, rate), value, growths in zip(self.group.models, reached, self.growths, strict=True)
        ]
        self.emit(self.trunk, models)
