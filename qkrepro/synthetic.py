"""A corpus that needs nothing: words drawn from Zipf's law, some of them repeated from a fixed distance back.

x_t = x_{t − lag} with probability `repeat`, else a fresh word of the Zipf law π(k) ∝ 1/k. Every word is then exactly
Zipf distributed, and the conditional entropy given the past is known, so that a perplexity has a floor: a model that
attends `lag − 1` tokens back reaches it, a model of word frequencies alone stops at the entropy of π.
Source: ours (book, "LocAteR").
"""

import hashlib
import math

import torch
from torch import Tensor

from qkrepro.corpus import Corpus
from qkrepro.errors import ArgumentError, check_integer, check_number


def zipf_probabilities(vocabulary: int) -> Tensor:
    """Return π(k) ∝ 1/k for k = 1 … vocabulary: float64, (vocabulary,)."""
    check_integer("vocabulary", vocabulary, at_least=2)
    weights = 1.0 / torch.arange(1, vocabulary + 1, dtype=torch.float64)
    return weights / weights.sum()


def conditional_entropy(vocabulary: int, repeat: float) -> float:
    """Return the entropy of the next word given the past, in nats a token; exp of it is the least perplexity.

    Given the word a `lag` back, word b has probability repeat·1[a = b] + (1 − repeat)·π(b); averaged over a ~ π.
    """
    pi = zipf_probabilities(vocabulary)
    fresh = torch.special.entr((1 - repeat) * pi)  # (vocabulary,), the terms of the words that are not repeated
    repeated = torch.special.entr(repeat + (1 - repeat) * pi)
    return float((pi * (fresh.sum() - fresh + repeated)).sum())


def synthetic_corpus(
    vocabulary: int = 256,
    tokens: int = 100_000,
    repeat: float = 0.6,
    lag: int = 4,
    seed: int = 0,
) -> Corpus:
    """Return `tokens` training tokens and a tenth of that for validation and for test, from one seed.

    The first `lag` words of a split are fresh, which raises its entropy by a share of about lag/tokens.
    Raises ArgumentError for a repeat outside [0, 1) or sizes that leave an empty split.
    """
    check_number("repeat", repeat, at_least=0.0)
    if repeat >= 1:
        raise ArgumentError(f"repeat is {repeat!r}; allowed: at least 0 and below 1")
    check_integer("lag", lag, at_least=1)
    check_integer("tokens", tokens, at_least=10 * (lag + 1))
    pi = zipf_probabilities(vocabulary)
    generator = torch.Generator().manual_seed(seed)
    train, valid, test = (_words(pi, n, repeat, lag, generator) for n in (tokens, tokens // 10, tokens // 10))
    made_from = f"synthetic zipf vocabulary={vocabulary} tokens={tokens} repeat={repeat} lag={lag} seed={seed}"
    digest = hashlib.sha256(torch.cat([train, valid, test]).numpy().tobytes()).hexdigest()
    words = [f"w{k}" for k in range(1, vocabulary + 1)]
    return Corpus(made_from, words, train, valid, test, digest, entropy=conditional_entropy(vocabulary, repeat))


def _words(pi: Tensor, tokens: int, repeat: float, lag: int, generator: torch.Generator) -> Tensor:
    rows = math.ceil(tokens / lag)
    fresh = torch.multinomial(pi, rows * lag, replacement=True, generator=generator).view(rows, lag)
    drawn = torch.rand(rows, lag, generator=generator, dtype=torch.float64) >= repeat  # True: a fresh word
    drawn[0] = True
    latest = torch.where(drawn, torch.arange(rows)[:, None], 0).cummax(dim=0).values  # the row a word comes from
    return fresh.gather(0, latest).flatten()[:tokens]
