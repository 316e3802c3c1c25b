"""What a model card says, in Markdown: each function turns records into a sentence, a list or a table, or nothing.

Only numbers that a record holds appear, rounded. A function returns an empty string where nothing was measured.
"""

from huggingface_hub import constants

from hf_progressive.config.ranges import with_article
from hf_progressive.growth.families import FAMILIES
from hf_progressive.growth.mixtures import MIXTURES
from hf_progressive.publishing.lineage import Lineage
from hf_progressive.records.rung import RungRecord
from hf_progressive.report.formatting import NOTHING, FlopUnit, count, decimals, minus, percent, significant, small
from hf_progressive.report.ladder_tables import flop_unit, spent
from hf_progressive.report.table import Table, escape_markdown

_SCHEDULES = {"linear": "fell linearly", "cosine": "fell along a cosine"}


def architecture(lineage: Lineage) -> str:
    """Return the name of the model's family, as people write it."""
    model_type = str(lineage.rung.config["model_type"])
    family = (FAMILIES | MIXTURES).get(model_type)
    return (family and family.title) or model_type


def introduction(lineage: Lineage) -> str:
    """Say in a sentence or two what the model is."""
    rung = lineage.rung
    ladder = f" of the ladder *{escape_markdown(lineage.title)}*" if lineage.title else ""
    place = f"rung {rung.index + 1} of {lineage.planned}{ladder}" if lineage.title else "one rung of a ladder"
    model = with_article(f"{architecture(lineage)} language model").removeprefix("a")
    what = f"A{model} of {count(rung.parameters.total)} parameters, {place}"
    if rung.origin is not None:
        return f"{what}: the first, taken from {_origin(lineage)} and not trained further. The others inherit from it."
    if not rung.grown:
        return f"{what}: the first, trained from scratch. The others inherit from it."
    assert rung.parent is not None
    if rung.trunk is not None:
        return f"{what}. It was not trained from scratch: {_on_the_trunk(lineage)}"
    kept = rung.growth is None or rung.growth.preserves_function
    return (
        f"{what}. It was not trained from scratch: it was grown from {lineage.link(rung.parent)}, began as a larger"
        f" network that computes {'the same function' if kept else 'something close to it'}, and went on from there."
    )


def _on_the_trunk(lineage: Lineage) -> str:
    # Of a grown rung: the run that it is a part of.
    assert lineage.rung.parent is not None
    return (
        f"one training run at a constant rate, the trunk, passed through the size of"
        f" {lineage.link(lineage.rung.parent)} and grew into this one on its way."
    )


def _branch(rung: RungRecord) -> str:
    # How a part of a trunk became a finished model.
    assert rung.trunk is not None
    part = rung.trunk
    if part.member == "decay":
        return f"on a branch off the trunk, over whose {part.decay_steps:,} steps the rate fell"
    if part.member == "average":
        return f"as the average of the trunk's weights after {len(part.averaged_steps)} of its steps"
    return "by the trunk's own decay" if part.member == "end" else "as the trunk's weights were, without a decay"


def _origin(lineage: Lineage) -> str:
    origin = lineage.rung.origin
    assert origin is not None
    if origin.commit is None:
        return escape_markdown(origin.name)
    return f"[{origin.name}]({constants.ENDPOINT}/{origin.name}) at `{origin.commit[:12]}`"


def facts(lineage: Lineage) -> list[tuple[str, str]]:
    """Return the model at a glance."""
    rung, unit = lineage.rung, flop_unit([lineage.rung])
    embedded = count(rung.parameters.non_embedding)
    size = f"{rung.layers} layers of width {rung.width}, " if rung.layers and rung.width else ""
    context = rung.config.get("n_positions") or rung.config["max_position_embeddings"]
    rows = [
        ("Model", f"{architecture(lineage)}, {size}context {context:,}"),
        ("Parameters", f"{count(rung.parameters.total)}, of which {embedded} outside the embeddings"),
    ]
    if rung.origin is not None:
        rows.append(("Taken from", _origin(lineage)))
    else:
        before = "the trunk, at the size of " if rung.trunk is not None else ""
        rows.append(("Grown from", "nothing" if rung.parent is None else f"{before}{lineage.link(rung.parent)}"))
    if rung.trunk is not None:
        rows.append(("Finished", _branch(rung)))
    if rung.max_abs_logit_diff is not None and rung.max_abs_logit is not None:
        change, scale = small(rung.max_abs_logit_diff), significant(rung.max_abs_logit)
        kept = rung.growth is None or rung.growth.preserves_function
        whose = "the parent's function" if kept else "not the parent's function"
        rows.append(("Started from", f"{whose}: logits up to {scale} differed by {change} at most"))
    baseline = "" if rung.cold is None else f"; its baseline, trained from scratch: {rung.cold.bits_per_byte:.4f}"
    rows.append(("Bits per byte", f"{rung.bits_per_byte:.4f} on validation documents{baseline}"))
    part = "" if rung.lineage_complete else "; what went into the first of them is not known"
    if rung.origin is None:
        rows.append(("FLOPs of its own", _own_flops(rung, unit)))
    elif rung.flops.train:
        rows.append(("FLOPs that went into it", f"{unit.text(rung.flops.train)}, its ancestors' included{part}"))
    if rung.grown:
        whom = "the trunk before it" if rung.trunk is not None else "its ancestors"
        rows.append(("FLOPs inherited", f"{unit.text(rung.flops.inherited)}, spent on {whom}{part}"))
    if rung.cold is not None:
        rows.append(("FLOPs of its baseline", unit.text(rung.cold.flops)))
        rows.append(("FLOPs to match", _match(rung, unit)))
        if rung.last_model_cost is not None:
            inherited = "with all that it inherits, it costs"
            rows.append(("Last-model cost", f"{inherited} {rung.last_model_cost:.2f} times what its baseline does"))
    return rows


def _own_flops(rung: RungRecord, unit: FlopUnit) -> str:
    parts = [unit.text(rung.flops.train)]
    if rung.flops.branch:
        parts[0] += f" ({unit.number(rung.flops.branch)} of it on a branch that no other model inherits)"
    if rung.flops.fisher:
        parts.append(f"{unit.number(rung.flops.fisher)} for its parent's Fisher information")
    if rung.flops.subspace:
        parts.append(f"{unit.number(rung.flops.subspace)} for its parent's subspace")
    return ", and ".join(parts)


def _match(rung: RungRecord, unit: FlopUnit) -> str:
    if rung.flops_to_match is None:
        return "not matched"
    saved = "" if rung.saving is None else f", {percent(rung.saving)} saved"
    eta = "" if rung.eta is None else f", transfer efficiency η = {minus(f'{rung.eta:.2f}')}"
    eta += "" if rung.eta_ceiling is None else f" of {rung.eta_ceiling:.2f} at most"
    return f"{unit.text(rung.flops_to_match)}{saved}{eta}"


def growth_story(lineage: Lineage) -> str:
    """Say how the model was grown and what was checked."""
    growth, rung = lineage.rung.growth, lineage.rung
    if growth is None or rung.parent is None:
        return ""
    sizes = growth.plan.get("parameters")  # of parent and child
    before = f"{count(sizes[0])} parameters, " if sizes else ""
    text = f"Grown from {lineage.link(rung.parent)} ({before}method `{growth.method}`, seed {growth.seed})."
    if rung.trunk is not None:
        text += " It has the trunk's weights, not those with which that model was finished on its branch."
    check = growth.verification
    if check is None:
        return text
    verdict = "the same function" if check.preserved else "**not** the same function"
    change, divergence = small(check.max_abs_logit_diff), small(check.kl)
    return (
        f"{text} Before its first step it computed {verdict}: on {check.sequences} sequences of {check.length}"
        f" random tokens in {check.dtype}, the largest difference of two logits was {change}, at a scale of"
        f" {significant(check.max_abs_logit)}, and the Kullback-Leibler divergence was {divergence} nat."
    )


def training_budget(lineage: Lineage) -> str:
    """Say how much the model was trained."""
    rung, environment = lineage.rung, lineage.rung.environment
    if rung.origin is not None:
        return f"Not trained by this ladder{f': it had read {count(rung.tokens)} tokens' if rung.tokens else ''}."
    budget = f"{count(rung.tokens)} tokens, {significant(rung.tokens_per_parameter)} per parameter of the budget"
    if rung.trunk is not None:
        budget += f", {count(rung.trunk.tokens)} of them on the trunk, and finished {_branch(rung)}"
    if rung.grown:
        budget += f"; training it from scratch would be planned with {count(rung.cold_tokens)}"
    versions = ", ".join(
        f"{name} {environment[name]}" for name in ("hf_progressive", "torch", "transformers") if name in environment
    )
    return f"{budget[0].upper()}{budget[1:]}. Made with {versions}."


def cold_comparison(lineage: Lineage) -> str:
    """Compare the model with the same architecture trained from scratch on its full budget."""
    rung, unit = lineage.rung, flop_unit([lineage.rung])
    if rung.cold is None:
        return ""
    text = (
        f"The same architecture, trained from scratch on its full budget ({unit.text(rung.cold.flops)}), ended at"
        f" {rung.cold.bits_per_byte:.4f} bits per byte on the same validation documents; this model ended at"
        f" {rung.bits_per_byte:.4f} with {unit.text(rung.curve[-1].flops)} of its own."
    )
    if rung.flops_to_match is None:
        missing = rung.gap_bits_per_byte
        gap = "" if missing is None else f"; {minus(f'{missing:.4f}')} bits per byte were missing"
        return f"{text} It did not reach the baseline{gap}."
    text += f" It reached the baseline's figure after {unit.text(rung.flops_to_match)}"
    if rung.saving is not None:
        text += f", {percent(rung.saving)} less" if rung.saving >= 0 else f", {percent(-rung.saving)} more"
    if rung.gap_bits_per_byte is not None and rung.gap_bits_per_byte > 0:
        text += f", and left it again: these weights are {rung.gap_bits_per_byte:.4f} bits per byte above"
    if rung.eta is None:
        return f"{text}."
    before = "the trunk before it" if rung.trunk is not None else "its parent, ancestors included,"
    return (
        f"{text}. All that had gone into {before} was"
        f" {unit.text(rung.flops.inherited)}; the saving is {minus(f'{rung.eta:.2f}')} of that: the"
        f" transfer efficiency η.{_last_model_cost(rung, unit)}"
    )


def _last_model_cost(rung: RungRecord, unit: FlopUnit) -> str:
    if rung.last_model_cost is None or rung.flops_to_match is None:
        return ""
    total = unit.text(rung.flops.inherited + rung.flops_to_match)
    return (
        f" Up to the match, it and all that it inherits took {total}, {rung.last_model_cost:.2f} times what the"
        f" baseline did: the last-model cost, for whoever wants this model alone."
    )


def core_results(lineage: Lineage) -> str:
    """Lay out the model's results on CORE, the collection of tasks of DCLM."""
    core = lineage.rung.core
    if core is None:
        return ""
    rows = []
    for task in core.tasks:
        accuracy = f"{task.accuracy:.4f} ± {task.standard_error:.4f}"
        centred = minus(f"{task.centred:.4f} ± {task.centred_standard_error:.4f}")
        rows.append((task.label, f"{task.examples:,}", accuracy, centred))
    score = minus(f"{core.score:.4f} ± {core.standard_error:.4f}")
    table = Table(header=("task", "examples", "accuracy", "centred accuracy"), rows=tuple(rows))
    return f"{core.name}: {score}, the mean of the centred accuracies (arXiv 2406.11794).\n\n{table.markdown()}"


def penalty(lineage: Lineage) -> str:
    """Say how the inheritance penalty was set and how strong it was."""
    phi = lineage.rung.phi
    if phi is None:
        return ""
    terms = []
    if phi.ewc_lambda > 0:
        how = "" if phi.fisher is None else f" ({phi.fisher.kind}, from {phi.fisher.sequences:,} sequences)"
        if phi.fisher is not None and phi.fisher.kind == "optimizer":
            how = " (the second moment of the parent's AdamW)"
        weighted = f", weighted by the parent's Fisher information{how}" if phi.fisher_kind != "ones" else " (L2-SP)"
        terms.append(f"λ = {phi.ewc_lambda:g} on the squared distance from the grown weights{weighted}")
    if phi.gamma > 0:
        subspace, how = phi.subspace, ""
        if subspace is not None and subspace.energy is not None:
            how = f" (from {subspace.source}, {percent(subspace.energy)} of the energy)"
        side = phi.subspace_side or "outside"
        terms.append(f"γ = {phi.gamma:g} on the squared distance {side} the parent's output subspace{how}")
    if phi.schedule not in _SCHEDULES:
        schedule = "stayed the same throughout"
    elif phi.until <= 1:
        schedule = f"{_SCHEDULES[phi.schedule]} to nothing over the first {percent(phi.until)} of the steps"
    else:
        schedule = f"{_SCHEDULES[phi.schedule]} as if to nothing at {percent(phi.until)} of the steps"
    them = "Both" if len(terms) > 1 else "It"
    what = " and ".join(terms)
    if phi.apply == "proximal":
        began = f"After each step of the optimizer, a proximal step followed for {what}"
    else:
        began = f"While training, the loss carried {what}"
    return f"{began}. {them} {schedule}.{_effect(lineage)}"


def _effect(lineage: Lineage) -> str:
    key = "phi/moved_ratio" if lineage.rung.phi and lineage.rung.phi.apply == "proximal" else "phi/grad_ratio"
    logged = [ratio for entry in lineage.rung.training_log if (ratio := entry.get(key)) is not None]
    if not logged:
        return ""
    most, last = (significant(value) for value in (max(logged), logged[-1]))  # the first is often 0, of a grown model
    if key == "phi/moved_ratio":
        return (
            f" It took back up to {most} of the distance from the grown weights at a logged step, {last} at the last."
        )
    return f" Its gradient's norm was up to {most} times the loss's at a logged step, {last} times at the last."


def data_use(lineage: Lineage) -> str:
    """Say what the model was trained on."""
    data, rung = lineage.rung.data, lineage.rung
    if rung.origin is not None and data.source == "unknown":
        return "What it was trained on is not recorded."
    source = escape_markdown(str(lineage.data["source"]))
    if lineage.dataset_id is not None:
        source = f"[{source}](https://huggingface.co/datasets/{lineage.dataset_id})"
    elif source == "stdlib":
        source = "the source text of Python's standard library"
    length = f" of {data.block_tokens:,} tokens" if data.block_tokens else ""
    whole = f" of {data.corpus_blocks:,}" if data.corpus_blocks else ""  # a stream's end is not known
    identity = f" (fingerprint `{data.fingerprint}`)" if data.fingerprint else ""
    text = (
        f"Source: {source}{identity}. The model read {data.blocks:,} blocks{length}{whole}, from block"
        f" {data.first_block:,} on."
    )
    repeats = rung.data.repeats_from_token
    if repeats is None and not rung.lineage_complete:
        return f"{text} None of them had been read here before; what its first ancestor had read is not known."
    if repeats is None:
        return f"{text} None of them had been read by it or by an ancestor before."
    where = "its first token" if repeats == 0 else f"its token {repeats:,}"
    return f"{text} From {where} on they had been read before, by it or by an ancestor."


def family_table(lineage: Lineage) -> str:
    """Lay out the finished rungs of the ladder."""
    if len(lineage.family) < 2:
        return ""
    unit = flop_unit(lineage.family)
    rows = []
    for rung in lineage.family:
        name = f"**{rung.name}**" if rung.name == lineage.rung.name else lineage.link(rung.name)
        rows.append((name, *_family_cells(rung, unit)))
    own, cold, to_match = f"own {unit.name}", f"cold {unit.name}", f"{unit.name} to match"
    measured, compared = ("bits per byte", "baseline's"), ("saved", "η", "last-model cost")
    header = ("rung", "parameters", "tokens", *measured, own, cold, to_match, *compared)
    return f"{Table(header=header, rows=tuple(rows)).markdown(escape=False)}\n\n{unit.definition}."


def _family_cells(rung: RungRecord, unit: FlopUnit) -> list[str]:
    return [
        count(rung.parameters.total),
        count(rung.tokens),
        f"{rung.bits_per_byte:.4f}",
        decimals(None if rung.cold is None else rung.cold.bits_per_byte, 4),
        spent(rung, unit),
        NOTHING if rung.cold is None else unit.number(rung.cold.flops),
        NOTHING if rung.flops_to_match is None else unit.number(rung.flops_to_match),
        NOTHING if rung.saving is None else percent(rung.saving),
        decimals(rung.eta),
        decimals(rung.last_model_cost),
    ]


def limits(lineage: Lineage) -> list[str]:
    """Return what a user must not expect."""
    corpus = "training" if lineage.rung.origin is None else "ladder's"
    sentences = [
        "A base model: it continues text. It was not taught to follow instructions, and nothing was done about bias,"
        " toxicity or false statements in its data.",
        f"Bits per byte were measured on held-out documents of the {corpus} corpus; they say little about other text.",
    ]
    if lineage.rung.cold is not None:
        sentences.append("One seed: the comparison with the baseline carries the noise of a single run of each.")
    elif lineage.rung.grown:
        sentences.append("No baseline of this rung was trained, so nothing is known about what inheritance saved.")
    return sentences
