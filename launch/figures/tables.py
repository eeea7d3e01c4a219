"""What a figure says in numbers: the final losses, and the paper's claims one by one."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from launch.figures.runs import Curve, Shared
from launch.reports.intervals import Interval, interval, values_to_decide
from launch.reports.tables import markdown_table

NAMES: dict[Shared, str] = {
    "rps": "models (RPS)",
    "gradient-averaging": "gradients",
    "gradient-averaging-zero": "gradients, none on a miss",
}


class Claim(NamedTuple):
    """Something that the paper says, as a difference between two curves at the end of training.

    Attributes:
        text: What is claimed.
        quantity: What is compared.
        difference: Over the seeds, which both curves have in common.
        lowest: The claim is that the difference is above this,
        highest: and below this.
        num_seeds: How many seeds there are.
    """

    text: str
    quantity: str
    difference: Interval
    lowest: float
    highest: float
    num_seeds: int

    @property
    def bounds(self) -> str:
        """The difference that is claimed."""
        if self.lowest == -math.inf:
            return f"below {self.highest:g}"
        if self.highest == math.inf:
            return f"above {self.lowest:g}"
        return f"between {self.lowest:g} and {self.highest:g}"

    @property
    def verdict(self) -> str:
        """Whether the claim holds, as far as the seeds can tell."""
        mean, half = self.difference
        if math.isnan(half):
            holds = self.lowest < mean < self.highest
            return ("holds" if holds else "does not hold") + ", in one seed"
        if self.lowest < mean - half and mean + half < self.highest:
            return "holds"
        if mean + half <= self.lowest or self.highest <= mean - half:
            return "does not hold"
        margin = min(abs(mean - self.lowest), abs(mean - self.highest))
        needed = values_to_decide(self.difference, self.num_seeds, margin)
        return f"open: {f'about {needed}' if needed else 'over 1,000'} seeds would tell"


def claims(curves: Sequence[Curve], score: str) -> list[Claim]:
    """Returns those of the paper's claims that the curves can tell of.

    Args:
        curves: The figure's curves.
        score: What the test metric is called.
    """
    loss, inf = "training loss", math.inf
    found = []

    def compare(
        text: str, quantity: str, one: tuple, other: tuple, low: float, high: float
    ) -> None:
        both = [curve for key in (one, other) for curve in curves if curve[:2] == key]
        if len(both) == 2:
            key = "mean_model_train_loss" if quantity == loss else "test_metric"
            ends = [getattr(curve, key)[:, -1] for curve in both]
            difference = interval(ends[0] - ends[1])
            found.append(Claim(text, quantity, difference, low, high, len(ends[0])))

    compare("models at 99% are as good as at 100%", loss, ("rps", 99), ("rps", 100), -inf, 0.01)
    compare("the same", score, ("rps", 99), ("rps", 100), -0.01, inf)
    text = "models at 90% are within 0.01 to 0.02 of 100%"
    compare(text, loss, ("rps", 90), ("rps", 100), -inf, 0.02)
    text = "gradients at 100% are as good as models at 100%"
    compare(text, loss, ("gradient-averaging", 100), ("rps", 100), -0.01, 0.01)
    lossy: tuple[Shared, ...] = ("gradient-averaging", "gradient-averaging-zero")
    for shared in lossy:
        one, reliable = (shared, 99), ("gradient-averaging", 100)
        compare(f"{NAMES[shared]}: worse at 99% than at 100%", loss, one, reliable, 0.0, inf)
        compare("the same", score, one, reliable, -inf, 0.0)
        compare(f"{NAMES[shared]}: worse than models at 99%", loss, one, ("rps", 99), 0.0, inf)
        compare("the same", score, one, ("rps", 99), -inf, 0.0)
    return found


def table(
    curves: Sequence[Curve], paper: dict[float, float], score: str, seeds: Sequence[int]
) -> str:
    """Returns the final values, beside the paper's, and the claims; in Markdown.

    Args:
        curves: The figure's curves.
        paper: The paper's training loss of RPS, by probability of arrival.
        score: What the test metric is called.
        seeds: Seeds of each curve.
    """
    header = ["shared", "arrival", "paper: training loss", "training loss of the mean model"]
    header += ["training loss, mini-batches", score, "consensus distance"]
    rows = []
    for curve in curves:
        known = paper.get(curve.arrival) if curve.shared == "rps" else None
        row = [
            NAMES[curve.shared],
            f"{curve.arrival:g}%",
            "" if known is None else f"{known:g}",
            interval(curve.mean_model_train_loss[:, -1]),
            interval(curve.train_loss[:, -1]),
            interval(curve.test_metric[:, -1]),
            f"{np.mean(curve.consensus_distance[:, -1]):.2g}",
        ]
        rows.append(row)
    lines = [
        f"At the end of training, seeds {', '.join(map(str, seeds))}"
        + ("; ± is the half-width of a 95% confidence interval." if len(seeds) > 1 else "."),
        "",
        *markdown_table(header, rows),
        "",
        *_nearer(curves, paper),
    ]
    told = [
        (claim.text, claim.quantity, claim.bounds, claim.difference, claim.verdict)
        for claim in claims(curves, score)
    ]
    if told:
        header = ["the paper's claim", "of", "difference, claimed", "measured", ""]
        lines += markdown_table(header, told)
    return "\n".join(lines).rstrip("\n") + "\n"


def _nearer(curves: Sequence[Curve], paper: dict[float, float]) -> list[str]:
    """Returns which of the two training losses the paper's numbers are nearer to."""
    known = [curve for curve in curves if curve.shared == "rps" and curve.arrival in paper]
    if not known:
        return []
    away = {
        what: np.mean([abs(np.mean(values(c)[:, -1]) - paper[c.arrival]) for c in known])
        for what, values in (
            ("the loss of the mean model", lambda c: c.mean_model_train_loss),
            ("the average over mini-batches", lambda c: c.train_loss),
        )
    }
    near, far = sorted(away, key=lambda what: away[what])
    if away[far] < 1.1 * away[near]:
        return [
            f"The paper's numbers are as near to {near} as to {far} ({away[near]:.2g} away).",
            "",
        ]
    return [
        f"The paper's numbers are nearer to {near} ({away[near]:.2g} away in the mean) than to "
        f"{far} ({away[far]:.2g}).",
        "",
    ]
