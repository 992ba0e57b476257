"""A folder of your own text: the pair of runs that the chapters make of WikiText-2, and what a long run would take.

Source: book, "Bring your own corpus".
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from qkrepro.errors import RunError, check_integer
from qkrepro.evidence.claims import Claim
from qkrepro.files import write_atomically
from qkrepro.models.run_words import UNK
from qkrepro.training.configuration import RunConfiguration
from qkrepro.training.corpus import SPLITS, Corpus, load_corpus, synthetic_corpus
from qkrepro.training.tables import RunTables, live_runs

RATED = ("kappa-reduced", "locater-wikitext-2")  # sweeps whose speed the page shows: few words, and all
READS = ("results/kappa-reduced/*/timing.json", "results/locater-wikitext-2/*/timing.json")  # beside the package

EXAMPLE_WORDS, EXAMPLE_LINE = 30, 40  # words of the example's vocabulary, and on a line
RATE_COLUMNS = ["records", "words", "tokens_per_second", "minutes_a_pass"]


class OwnRuns(NamedTuple):
    """Runs on a folder of text, and the text in numbers: split, tokens, unknown (share of tokens)."""

    runs: RunTables
    text: pd.DataFrame


def write_example(folder: str | Path, tokens: int = 60_000, seed: int = 0) -> Path:
    """Write train.txt, valid.txt and test.txt of the synthetic corpus to `folder`, which is returned.

    tokens: words of the training split, the others a tenth of that; they repeat with a known probability the word a
    fixed distance back. Raises ArgumentError for too few tokens, RunError when the folder cannot be written.
    """
    corpus = synthetic_corpus(vocabulary=EXAMPLE_WORDS, tokens=tokens, seed=seed)
    for split in SPLITS:
        words = [corpus.words[number] for number in getattr(corpus, split).tolist()]
        lines = [" ".join(words[first : first + EXAMPLE_LINE]) for first in range(0, len(words), EXAMPLE_LINE)]
        write_atomically(Path(folder) / f"{split}.txt", ("\n".join(lines) + "\n").encode())
    return Path(folder)


def runs_on_folder(
    folder: str | Path, base: RunConfiguration, seeds: Sequence[int], kappas: Sequence[float]
) -> OwnRuns:
    """Train `base` on the text in `folder` once for every seed and kappa; "" is the example, written for the moment.

    The runs of one seed share initial weights, batches and dropout. Nothing of them stays on the disk; the encoded text
    is kept in the cache. Raises CorpusError for the folder, and as `qkrepro.training.loop.train` does.
    """
    with tempfile.TemporaryDirectory(prefix="qkrepro-") as scratch:
        text = Path(folder) if str(folder) else write_example(Path(scratch) / "example")
        on_text = replace(base, corpus=str(text))
        corpus = load_corpus(on_text.corpus, None, on_text.vocabulary)
        runs = live_runs(replace(on_text, seed=seed, kappa=kappa) for seed in seeds for kappa in kappas)
    return OwnRuns(runs, text_table(corpus))


def text_table(corpus: Corpus) -> pd.DataFrame:
    """Return columns split, tokens, unknown: the share of tokens that the vocabulary does not hold."""
    rows = []
    for split in SPLITS:
        tokens: torch.Tensor = getattr(corpus, split)
        unknown = float((tokens == corpus.words.index(UNK)).double().mean()) if UNK in corpus.words else 0.0
        rows.append({"split": split, "tokens": len(tokens), "unknown": unknown})
    return pd.DataFrame(rows)


def recorded_rates(folder: str | Path, tokens: int, sweeps: Sequence[str] = RATED) -> pd.DataFrame:
    """Return what committed runs took, and what a pass over `tokens` training tokens would take at that rate.

    folder: `results`, in which each of `sweeps` has a folder. Returns records (the sweep), words (of the vocabulary),
    tokens_per_second (median over its runs, of one core), minutes_a_pass; no rows without records. Raises RunError for
    a damaged timing.json.
    """
    check_integer("tokens", tokens, at_least=1)
    rows = []
    for path in (path for sweep in sweeps for path in sorted((Path(folder) / sweep).glob("*/timing.json"))):
        try:
            rate = json.loads(path.read_text())["tokens_per_second"]
            words = json.loads((path.parent / "run.json").read_text())["corpus"]["words"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path.parent} is damaged: {error}") from error
        rows.append({"records": path.parent.parent.name, "words": words, "tokens_per_second": rate})
    rates = pd.DataFrame(rows, columns=RATE_COLUMNS[:-1])
    median = rates.groupby(["records", "words"])["tokens_per_second"].median().reset_index()
    return median.assign(minutes_a_pass=tokens / median["tokens_per_second"] / 60)[RATE_COLUMNS]


CLAIMS: tuple[Claim, ...] = ()
