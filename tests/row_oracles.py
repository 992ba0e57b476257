"""Rows of attention written out in NumPy, against which the tests of the theory hold the package and its pages."""

import numpy as np


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def entropy(weights):
    """Entropy of each row of weights, nats."""
    return -(weights * np.log(np.where(weights > 0, weights, 1))).sum(-1)


def walks(rng, samples, length, dim):
    return rng.standard_normal((samples, length, dim)).cumsum(1)  # (samples, T, d)


def close(samples, value, errors=4.5):
    """Whether the mean of samples lies within so many standard errors of value."""
    samples = np.asarray(samples, dtype=float)
    return abs(samples.mean() - value) <= errors * samples.std() / np.sqrt(len(samples)) + 1e-12
