"""The names of `import qkrepro as qk`; `__init__.py` imports each of them when it is first used."""

from .models.checkpoint import qk_heads, qk_weights
from .models.spectrum_report import qk_table
from .theory.attention import attention_entropy, piecewise_linear_attention, softmax_attention
from .theory.depth import Stack, depth_experiment
from .theory.entropy import entropy_lower_bound
from .theory.propagation import localization, signal_propagation
from .theory.rank import rank_residual
from .theory.spectrum import qk_eigenvalues, qk_matrix, qk_moments, random_spectrum_matrix
from .theory.tokens import random_walk
from .theory.xavier import xavier_law
from .training.configuration import RunConfiguration
from .training.locater import LocAteR
from .training.loop import train

__version__: str

__all__ = [
    "LocAteR",
    "RunConfiguration",
    "Stack",
    "__version__",
    "attention_entropy",
    "depth_experiment",
    "entropy_lower_bound",
    "localization",
    "piecewise_linear_attention",
    "qk_eigenvalues",
    "qk_heads",
    "qk_matrix",
    "qk_moments",
    "qk_table",
    "qk_weights",
    "random_spectrum_matrix",
    "random_walk",
    "rank_residual",
    "signal_propagation",
    "softmax_attention",
    "train",
    "xavier_law",
]
