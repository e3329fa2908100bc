"""Before anyone labels: how many pairs, votes, raters and hours a wanted interval takes.

    plan(0.03)    # a win rate to within 3 points either way, at 95%

The estimate is the mean over pairs of the mean vote, a tie half. Votes of one pair are not independent evidence: with
agreement rho, the intraclass correlation of votes (Krippendorff's alpha of two-sided judgements estimates it), the mean
of k votes has variance v (rho + (1 - rho) / k), where v = rate (1 - rate) - ties / 4 is that of one vote. The majority
of the k, which `palate compare --people` names first, throws away by how much it was one: its interval is wider, and is
told beside. Its variance is that of more than half of k beta-binomial votes of that correlation, none a tie: ties make
it less. Pairs of one prompt are alike, too, and multiply both by the design effect 1 + (m - 1) * prompt_correlation
(Kish, 1965).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

VOTES_OF_A_RATER = 400  # about an hour at the default pace, before attention goes


class PlanError(ValueError):
    """No plan can hold what is asked; the message names the argument."""


@dataclass(frozen=True)
class Plan:
    """pairs of so many prompts, each judged by votes_per_pair distinct raters; votes in all, known and repeated pairs
    included; raters, of at most VOTES_OF_A_RATER votes each; hours of all of them together.

    half_width: what the interval is expected to reach either way of the rate, at 95%. majority_half_width: the same, at
    most, of the rate at which the majority of a pair's votes wins.
    """

    pairs: int
    prompts: int
    votes_per_pair: int
    votes: int
    raters: int
    hours: float
    half_width: float
    majority_half_width: float

    def __str__(self) -> str:
        return (
            f"{self.pairs} pairs of {self.prompts} prompts, {self.votes_per_pair} votes each: {self.votes} votes with "
            f"known and repeated pairs, by at least {self.raters} raters, {self.hours:.1f} hours of work in all, for "
            f"an interval of plus or minus {100 * self.half_width:.1f} points of the mean vote, and at most "
            f"{100 * self.majority_half_width:.1f} points of the majority of each pair's votes"
        )


def plan(
    half_width: float,
    rate: float = 0.5,
    *,
    ties: float = 0.1,
    votes_per_pair: int = 5,
    agreement: float = 0.4,
    seconds_per_vote: float = 8.0,
    pairs_per_prompt: int = 1,
    prompt_correlation: float = 0.3,
    known_share: float = 0.05,
    repeat_share: float = 0.05,
) -> Plan:
    """What a 95% interval of rate +- half_width takes.

    rate: the win rate expected, .5 the hardest. ties: their share. agreement: alpha, 0 (votes of one pair have nothing
    in common) to 1 (all say the same); .4 is two people agreeing on 7 of 10 decided pairs. known_share, repeat_share:
    of what a rater is shown, pairs that are asked to know the rater and not the models.

    Raises PlanError for arguments out of range, naming them.
    """
    _check(half_width, rate, ties, votes_per_pair, agreement, seconds_per_vote)
    if pairs_per_prompt < 1 or not 0 <= prompt_correlation <= 1:
        raise PlanError("pairs_per_prompt must be 1 or more and prompt_correlation lie from 0 to 1")
    if known_share < 0 or repeat_share < 0 or known_share + repeat_share >= 1:
        raise PlanError("known_share and repeat_share must not be negative and leave room for other pairs")
    of_a_vote = rate * (1 - rate) - ties / 4
    of_a_pair = of_a_vote * (agreement + (1 - agreement) / votes_per_pair)
    shared = (1 + (pairs_per_prompt - 1) * prompt_correlation) / pairs_per_prompt
    of_a_prompt = of_a_pair * shared
    prompts = _prompts(of_a_prompt, half_width)
    pairs = prompts * pairs_per_prompt
    votes = math.ceil(pairs * votes_per_pair / (1 - known_share - repeat_share))
    return Plan(
        pairs=pairs,
        prompts=prompts,
        votes_per_pair=votes_per_pair,
        votes=votes,
        raters=max(votes_per_pair, math.ceil(votes / VOTES_OF_A_RATER)),
        hours=votes * seconds_per_vote / 3600,
        half_width=_half_width(of_a_prompt, prompts),
        majority_half_width=_half_width(_of_majority(rate, agreement, votes_per_pair) * shared, prompts),
    )


def _of_majority(rate: float, agreement: float, votes: int) -> float:
    """Variance of the majority of so many votes: 1, 0, or .5 where neither side has more."""
    import numpy as np
    from scipy.stats import betabinom, binom

    wins = np.arange(votes + 1)
    if agreement in (0, 1):  # the ends that the beta distribution only comes near to
        chances = (
            binom.pmf(wins, votes, rate) if agreement == 0 else np.where(wins == votes, rate, (wins == 0) * (1 - rate))
        )
    else:
        weight = (1 - agreement) / agreement
        chances = betabinom.pmf(wins, votes, rate * weight, (1 - rate) * weight)
    outcome = np.where(2 * wins == votes, 0.5, 2 * wins > votes)
    return float(chances @ outcome**2 - (chances @ outcome) ** 2)


def _prompts(variance: float, half_width: float) -> int:
    """The fewest prompts whose mean has an interval no wider: the normal's number, then up with Student's t."""
    prompts = max(2, math.ceil(variance * (1.959963984540054 / half_width) ** 2))
    while _half_width(variance, prompts) > half_width:
        prompts += 1
    return prompts


def _half_width(variance: float, prompts: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, prompts - 1)) * math.sqrt(variance / prompts)


def _check(half_width: float, rate: float, ties: float, votes: int, agreement: float, seconds: float) -> None:
    if not 0 < half_width < 0.5:
        raise PlanError(f"half_width must lie between 0 and .5 (0.03 is plus or minus 3 points), got {half_width:g}")
    if not 0 < rate < 1:
        raise PlanError(f"rate must lie between 0 and 1, got {rate:g}")
    if not 0 <= ties <= 2 * min(rate, 1 - rate) or ties >= 1:
        raise PlanError(f"ties must lie from 0 to below 1, and half of them within the rate {rate:g}; got {ties:g}")
    if votes < 1:
        raise PlanError(f"votes_per_pair must be 1 or more, got {votes}")
    if not 0 <= agreement <= 1:
        raise PlanError(f"agreement must lie from 0 to 1, got {agreement:g}")
    if seconds <= 0:
        raise PlanError(f"seconds_per_vote must be above 0, got {seconds:g}")
