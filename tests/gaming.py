"""A gamed course as judges see it: with every look the reward rises; the taste rises until the third and falls then."""

import numpy as np

PROMPTS = [f"a thing called {name}" for name in ("ada", "bel", "cid", "dot", "eve", "fay", "gus", "hal")]


class Gamed:
    dimensions = ("reward", "taste")
    golden = None

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self, prompts, media):
        self.looks += prompts[0] == PROMPTS[0]
        gained = 0.1 * self.looks if prompts[0] in PROMPTS else 0.0
        rows = np.arange(len(prompts))
        level = np.array([sum(map(ord, prompt)) % 7 / 10 for prompt in prompts]) + np.sin(self.looks + rows) / 100
        return {"reward": gained + level, "taste": min(gained, 0.6 - gained) + level}


scorer = Gamed()
