"""What the page of a study of trunks may say, claim by claim."""

from claims import Claim

COST = "The last model for {cost} times its price from scratch ({spread:s}), by a trunk through {stages:s} smaller"
TRIED = (
    "Of the peak learning rates tried for {side:s} on {rung:s} ({rates:s}) {best} is the best, and the study uses it"
)
CHOSEN = (
    "Peak learning rates were chosen on {chosen:s}, by the validation documents that everything is measured on; "
    "{these:s} in the means and intervals like the others"
)
TRUNK_CLAIMS = [
    Claim(COST, lambda f: "over" not in f),
    Claim(COST + "; all {family_count:s} for {over} times it ({over_ends:s})"),
    Claim("Peak learning rates are still being tried: no cost is known yet", lambda f: f["pending"] > 0),
    Claim(
        "{tried} of {to_try} training runs that try peak learning rates are finished; costs follow when each side has "
        "its best.",
        lambda f: f["pending"] > 0,
    ),
    Claim(
        "Recipe “{recipe:s}” on {sized:s}: one run at a "
        "constant rate grows from size to size ({path:s} of the tokens), decays once at its end, and is compared with "
        "the same model trained from scratch, at equal bits per byte."
    ),
    Claim("They are worth, in budgets from scratch of their own size, {worths:s}."),
    Claim(
        "The trunk ends at {bits} bits per byte, its baseline's whole budget at {baseline}, means over the seeds; a "
        "seed's cost is at what its own trunk has.",
        lambda f: f["seeds"] > 1,
    ),
    Claim(
        "The trunk ends at {bits} bits per byte, its baseline's whole budget at {baseline}; a seed's cost is at what "
        "its own trunk has.",
        lambda f: f["seeds"] == 1,
    ),
    Claim(
        "The interval of the last-model cost holds {one}: that growing is cheaper is not shown.",
        lambda f: f["low"] <= 1 <= f["high"],
    ),
    Claim(
        "In {extrapolated} of {seeds} seeds the last model is better, or worse, than every finished baseline: the "
        "budget from scratch that is worth it is extrapolated there, to {how_far:s} times the whole budget."
    ),
    Claim(
        "The last model costs {of_shared} on {shared:s}, which all recipes have, and {of_others} on {lacking:s}, "
        "which others lack."
    ),
    Claim(TRIED + ".", lambda f: not f["failed_at"]),
    Claim(TRIED + "; training failed at {failed_at:s}."),
    Claim(
        "Tried for {side:s} beside them, on seed {first_seed:s} alone and not chosen from: {beside:s}.",
        lambda f: bool(f["beside"]),
    ),
    Claim(CHOSEN + "; without {them:s} the last model costs {without} ({others:s})."),
    Claim(CHOSEN + ".", lambda f: not f["others"]),
    Claim(
        "Of {recipe_count:s} recipes “{recipe:s}” costs least; if it is the headline for that, chance flatters it.",
        lambda f: f["cheapest"],
    ),
    Claim("The best rate is at an end of those tried, and one beyond may be better: {at_end:s}."),
    Claim("Bars are {level} intervals by Student's t, ticks single seeds."),
    Claim(
        "The longest trunks of the seeds that both have, so that the baselines' chance is not in the difference; "
        "below {zero} the recipe is better."
    ),
    Claim("At other FLOPs than the headline's it is no comparison of equals."),
    Claim("Intervals are {level} by Student's t over the seeds."),
    Claim(
        "Saving: {one} − FLOPs of the last model after its last growth / FLOPs of the budget from scratch.",
    ),
    Claim(
        "Last-model cost: (FLOPs of all stages + FLOPs of the last model after its last growth) / FLOPs of the budget "
        "from scratch: below {one} it is cheaper to grow it than to train it."
    ),
    Claim(
        "Transfer efficiency η: (FLOPs of the budget from scratch − FLOPs of the last model after its last growth) / "
        "FLOPs of all stages: above {one} the last-model cost is below {one}."
    ),
    Claim("last-model cost: {cost} ×; {cost_ends:s}", lambda f: f["extrapolated"] == 0),
    Claim("last-model cost: {cost} ×; {cost_ends:s}; {extrapolated} of {seeds} seeds extrapolated"),
    Claim("η, {last:s}: {eta}; {eta_ends:s}; at most {ceiling}"),
]
