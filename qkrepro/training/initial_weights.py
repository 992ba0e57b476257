"""The model of a run with its query-key matrix started as Xavier drew it, scaled, or at a chosen eigenspectrum.

A peer that changes the model itself (`qkrepro.training.peers`) is put in last.

Source: book, "Plateaus"; "Theory: entropy and rank", learning in plateaus.
"""

import torch

from qkrepro.errors import ArgumentError, check_number
from qkrepro.models.transformer import LanguageModel, ModelConfig
from qkrepro.theory.spectrum import factor, random_spectrum_matrix
from qkrepro.training.configuration import RunConfiguration
from qkrepro.training.peers import retrofit


def build_model(configuration: RunConfiguration, vocabulary: int) -> LanguageModel:
    """Return the model of a run at update 0; its weights follow from the configuration's seed alone.

    Runs that differ only in their start share all other weights. Raises ArgumentError for sizes that do not fit.
    """
    sizes = ModelConfig(
        vocabulary,
        d_model=configuration.d_model,
        d_ff=configuration.d_ff,
        layers=configuration.layers,
        heads=configuration.heads,
        dropout=configuration.dropout,
        norm=configuration.norm,
        max_length=configuration.length,
        temperature=configuration.temperature,
    )
    dtype = torch.float64 if configuration.precision == "float64" else torch.float32
    model = LanguageModel(sizes, torch.Generator().manual_seed(configuration.seed), dtype)
    if configuration.start_mean is not None and configuration.start_deviation is not None:
        start_spectrum(model, configuration.start_mean, configuration.start_deviation, configuration.seed)
    if configuration.start_gain != 1:
        scale_start(model, configuration.start_gain)
    retrofit(model, configuration.peer, configuration.length)
    return model


@torch.no_grad()
def scale_start(model: LanguageModel, gain: float) -> None:
    """Multiply w_q and w_k of every head by `gain` > 0, and with it every eigenvalue of W_QK by gain²."""
    check_number("gain", gain, above=0)
    for head in model.qk_weights():
        head.w_q.mul_(gain)
        head.w_k.mul_(gain)


@torch.no_grad()
def start_spectrum(model: LanguageModel, mean: float, deviation: float, seed: int) -> None:
    """Start W_QK of every layer as a symmetric matrix of this eigenvalue mean and standard deviation, d_model of them.

    w_q and w_k are its balanced factors, so that w_qᵀ w_k has exactly that spectrum (to float32). deviation = 0 is mean
    · I, factored as √|mean| · I twice: a singular value decomposition of it would choose its basis by rounding, and
    Adam learns differently in different bases. model: changed in place; seed: of the eigenvectors. Raises ArgumentError
    for more than one head, whose W_QK has not rank d_model.
    """
    if model.config.heads != 1:
        raise ArgumentError("heads must be 1 with start_mean and start_deviation")
    generator = torch.Generator().manual_seed(seed)
    width = model.config.d_model
    for head in model.qk_weights():
        if deviation == 0:
            w_q = abs(mean) ** 0.5 * torch.eye(width, dtype=torch.float64)
            w_k = w_q if mean >= 0 else -w_q
        else:
            w_q, w_k = factor(random_spectrum_matrix(width, mean, deviation**2, generator=generator), width)
        head.w_q.copy_(w_q)
        head.w_k.copy_(w_k)
