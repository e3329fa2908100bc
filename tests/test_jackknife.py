import numpy as np
from scipy.stats import t

from palate import jackknife


def test_of_a_mean_it_is_students_interval():
    values = np.random.default_rng(0).normal(3, 2, 20)
    clusters = np.stack([values, np.ones(20)], 1)
    mean, low, high = jackknife.interval(lambda s: s[:1] / s[1:], clusters)
    half = t.ppf(0.975, 19) * values.std(ddof=1) / np.sqrt(20)
    np.testing.assert_allclose([mean[0], low[0], high[0]], [values.mean(), values.mean() - half, values.mean() + half])


def test_one_cluster_bounds_nothing_and_many_are_left_out_in_blocks():
    _, low, high = jackknife.interval(lambda s: s, np.ones((1, 2)))
    assert np.isnan(low).all() and np.isnan(high).all()
    asked = []
    jackknife.interval(lambda s: asked.append(s) or s, np.ones((1000, 1)))
    assert len(asked) == 1 + jackknife.BLOCKS and all(s in (990, 1000) for s in asked)
