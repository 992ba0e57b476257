"""A small model that is trained while a page is executed, with text to measure it on. Source: book, "Waiver tokens"."""

import tempfile

from torch import Tensor

from qkrepro.models.run_words import run_model
from qkrepro.models.towers import open_towers
from qkrepro.models.transformer import LanguageModel
from qkrepro.training.configuration import RunConfiguration
from qkrepro.training.corpus import load_corpus
from qkrepro.training.loop import train
from qkrepro.training.measurements import cut


def trained_live(configuration: RunConfiguration, *, sequences: int) -> tuple[LanguageModel, Tensor]:
    """Train a model in a folder that is removed afterwards; return it with validation tokens, (sequences, T), int64.

    Raises as `qkrepro.training.loop.train` does.
    """
    with tempfile.TemporaryDirectory(prefix="qkrepro-") as scratch:
        model = run_model(open_towers(train(configuration, scratch, progress=False))[0])
    corpus = load_corpus(configuration.corpus, None, configuration.vocabulary)
    return model, cut(corpus.valid, configuration.length, sequences * configuration.length)[0].inputs
