"""LocAteR, LOCalized ATtEntion Regularization: keep the query-key eigenspectrum small in scale, its mean in place.

One line in anybody's training loop:

    locater = LocAteR(kappa=1e-3)
    loss = cross_entropy(model(tokens), targets) + locater(model)

Reported of the paper: minimise the scale, maintain the mean. The exact form is ours: theory, "LocAteR".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qkrepro.errors import ArgumentError, ShapeError, check_choice, check_number
from qkrepro.models.packing import QKParameters
from qkrepro.models.transformer import Attention

SCALES = ("frobenius", "trace-square", "variance", "deviation")
MEANS = ("penalty", "projection", "keep")


def attention_modules(model: nn.Module) -> list[Attention | nn.MultiheadAttention]:
    """Return every attention layer of ours and of PyTorch in a module tree. Raises ArgumentError when there is none."""
    modules = [module for module in model.modules() if isinstance(module, Attention | nn.MultiheadAttention)]
    if not modules:
        raise ArgumentError(
            "model must be a pair (w_q, w_k) or a module tree with torch.nn.MultiheadAttention or this package's "
            f"Attention, got a {type(model).__name__} without attention layers"
        )
    return modules


def find_qk_parameters(model: nn.Module) -> list[QKParameters]:
    """Return the query and key weights of each attention layer of ours and of PyTorch in a module tree, in its order.

    Raises ArgumentError when there is none, ShapeError when queries and keys come from different widths.
    """
    layers = []
    for module in attention_modules(model):
        if isinstance(module, Attention):
            layers.append(QKParameters(module.query.weight, module.key.weight, module.heads, module.heads))
        elif module.in_proj_weight is None:
            heads = module.num_heads
            layers.append(QKParameters(module.q_proj_weight, module.k_proj_weight, heads, heads))
        else:
            packed, heads = module.in_proj_weight, module.num_heads
            layers.append(QKParameters(packed, packed, heads, heads, "thirds"))
    for parameters in layers:
        _check_pair(*parameters.weights())
    return layers


@dataclass(frozen=True)
class LocAteR:
    """κ · Σ over heads of (scale + mean term), to be added to the mean loss per token in nats.

    With W = w_qᵀ w_k (without the 1/√d_head of the logits), t = tr W, τ = target_trace, per head:

    - scale "frobenius": ‖W‖_F²; "trace-square": tr of the square of the symmetric part, (‖W‖_F² + tr W²)/2;
      "deviation": ‖W − (t/d_model) I‖_F² = ‖W‖_F² − t²/d_model; "variance": ‖W‖_F² − t²/d_head, which is 0 for a
      multiple of a projection of rank d_head. The last two take no penalty term. With one head, where d_head = d_model,
      they are one; with more, W is no multiple of I, and "deviation" is least at W = 0 alone;
    - mean "penalty": (t − τ)² is added to the first two scales; τ = 0 is pure shrinkage;
    - mean "projection": no term is added; the trace is held by the gradient instead. `start` sets t = τ once, by the
      smallest change of w_k alone among multiples of w_q, w_k ← w_k + (τ − t)/‖w_q‖_F² · w_q. From then on every
      backward pass takes from the gradient (g_q, g_k), of loss and penalty together, its component along the gradient
      of the trace: ∇t = (w_k, w_q), so with c = (⟨g_q, w_k⟩ + ⟨g_k, w_q⟩)/(‖w_q‖_F² + ‖w_k‖_F²), g_q ← g_q − c w_k and
      g_k ← g_k − c w_q, head by head. A plain gradient step of size η then moves t by η² ⟨g_q, g_k⟩ alone; momentum,
      Adam's rescaling and weight decay move it further, so the trace that a run records is the measured one;
    - mean "keep": the loss alone moves the trace. No term is added, and the gradient of the penalty, not that of the
      loss, gives up its component along ∇t; "frobenius", "deviation" and "variance" are then one regulariser.

    What "τ follows the current trace" can mean. With τ the current t, its gradient stopped, (t − τ)² has no gradient,
    and neither has τ²/d: ‖W‖_F² + (t − τ)² and ‖W‖_F² − τ²/d both shrink the mean as they shrink everything else. The
    target that follows is the matrix (τ/d) I: ‖W − (τ/d) I‖_F² has the gradient 2(W − (t/d) I) in W, whether the
    gradient of τ is stopped or not. That is "deviation". This gradient is orthogonal to I, so in W it leaves the trace;
    through the factors it does not (large eigenvalues have large factors and move faster), and for positive eigenvalues
    the trace falls. "keep" leaves it there too, to first order.

    tokens: an `IncrementCovariances` of the model; all of the above is then said of M = Σ^½ W Σ^½ in place of W, with
    t = tr M and ∇t = (w_k Σ, w_q Σ), Σ the running covariance of the increments of each layer's tokens, which no
    gradient enters; not with "trace-square" or "projection". Σ^½ is not needed.

    Never forms a d_model × d_model matrix but Σ. Works under autocast (float32 inside), gradient accumulation and
    torch.compile. `find` names the parameters of a model, by default `find_qk_parameters`.
    Raises ArgumentError for numbers or names that are not allowed. Source: book, "Theory: LocAteR".
    """

    kappa: float
    target_trace: float = 1.0
    scale: str = "frobenius"
    mean: str = "penalty"
    find: Callable[[nn.Module], Sequence[QKParameters]] = find_qk_parameters
    tokens: Callable[[], Sequence[Tensor]] | None = None

    @classmethod
    def for_model(cls, model: nn.Module, kappa: float = 0.01, **options: Any) -> "LocAteR":
        """Return LocAteR for a model of `transformers` (BERT, GPT-2, Llama and the other `FAMILIES`).

        The model may be wrapped by DistributedDataParallel or torch.compile, now or later; other options as for the
        class. Raises ArgumentError for a model of an unknown family, and for mean="projection" or "keep" where query
        heads share key heads: one key gradient cannot hold the trace of each of them.
        """
        from qkrepro.models.adapter import attached_parameters

        parameters = attached_parameters(model)
        mean = options.get("mean", "penalty")
        if mean != "penalty" and any(pair.grouped for pair in parameters):
            raise ArgumentError(f"mean must be 'penalty' for a model of grouped queries, got {mean!r}")
        return cls(kappa, find=attached_parameters, **options)

    def __post_init__(self) -> None:
        """Check the numbers and the names."""
        check_number("kappa", self.kappa, at_least=0)
        check_number("target_trace", self.target_trace)
        check_choice("scale", self.scale, SCALES)
        check_choice("mean", self.mean, MEANS)
        if self.scale == "trace-square" and (self.mean == "keep" or self.tokens):
            raise ArgumentError("scale must not be 'trace-square' with mean='keep' or with tokens")
        if self.mean == "projection" and self.tokens:
            raise ArgumentError("mean must be 'penalty' or 'keep' with tokens, got 'projection'")

    def __call__(self, weights: nn.Module | tuple[Tensor, Tensor]) -> Tensor:
        """Return the term to add to the loss, a scalar; differentiable in the weights.

        weights: a model, or (w_q, w_k) of shape (..., d_head, d_model), summed over all leading dimensions.
        Raises ArgumentError when the model has no attention layer, ShapeError when shapes do not fit.
        """
        if isinstance(weights, nn.Module):
            parameters = self.find(weights)
            covariances = self.tokens() if self.tokens else [None] * len(parameters)
            pairs = zip(parameters, covariances, strict=True)
            terms = [self.per_head(*pair.weights(), covariance).sum() for pair, covariance in pairs]
            return self.kappa * torch.stack([term.to(terms[0].device) for term in terms]).sum()
        _check_pair(*weights)
        return self.kappa * self.per_head(*weights).sum()

    def per_head(self, w_q: Tensor, w_k: Tensor, covariance: Tensor | None = None) -> Tensor:
        """Return scale + mean term of each head, without κ: (..., d_head, d_model) twice to (...), float32 or float64.

        covariance: Σ, symmetric, (d_model, d_model); None is the identity.
        """
        with torch.autocast(w_q.device.type, enabled=False):
            w_q, w_k = (w.double() if w.dtype == torch.float64 else w.float() for w in (w_q, w_k))
            along_q, along_k = w_k, w_q  # ∇t in w_q and in w_k, (..., d_head, d_model)
            if covariance is not None:
                along_q, along_k = (w @ covariance.detach().to(w) for w in (w_k, w_q))
            trace = (along_k * w_k).sum((-2, -1))  # (...)
            gram_q, gram_k = along_k @ w_q.mT, along_q @ w_k.mT  # (..., d_head, d_head)
            value = (gram_q * gram_k).sum((-2, -1))  # ‖W‖_F²
            if self.scale == "trace-square":
                small = w_k @ w_q.mT  # (..., d_head, d_head)
                value = (value + (small * small.mT).sum((-2, -1))) / 2
            if self.mean == "keep":
                with torch.no_grad():  # the component of ∇‖W‖_F² = 2 (gram_k ∇_k t, gram_q ∇_q t) along ∇t
                    along = 2 * ((gram_k @ along_k) * along_q + (gram_q @ along_q) * along_k).sum((-2, -1))
                    size = (along_q.square() + along_k.square()).sum((-2, -1))
                    share = along / size.clamp_min(torch.finfo(size.dtype).tiny)
                value = value - share * (trace - trace.detach())
                trace = trace.detach()
            if self.scale in ("variance", "deviation"):
                return value - trace**2 / w_q.shape[-2 if self.scale == "variance" else -1]
            return value + (trace - self.target_trace) ** 2 if self.mean == "penalty" else value

    def start(self, model: nn.Module, *, recentre: bool = True) -> list[torch.utils.hooks.RemovableHandle]:
        """Set the trace of every head to target_trace, and project all gradients from now on, for mean="projection".

        Call it once, before the first forward pass; recentre=False continues a run that was centred at its start.
        Returns the handles of the gradient hooks; nothing to do, and an empty list, for another mean.
        """
        if self.mean != "projection":
            return []
        handles = []
        for pair in self.find(model):
            if recentre:
                recentre_trace(*pair.weights(), self.target_trace)
            hook = _projection_hook(pair)
            distinct = {id(p): p for p in (pair.query, pair.key)}.values()
            handles += [p.register_post_accumulate_grad_hook(hook) for p in distinct]  # type: ignore[no-untyped-call]
        return handles


@torch.no_grad()
def recentre_trace(w_q: Tensor, w_k: Tensor, target_trace: float) -> None:
    """Set tr(w_qᵀ w_k) of every head to `target_trace`, in place: w_k ← w_k + (τ − t)/‖w_q‖_F² · w_q.

    w_q, w_k: (..., d_head, d_model). Raises ArgumentError when a head's w_q is zero: no multiple of it moves the trace.
    """
    size = w_q.square().sum((-2, -1), keepdim=True)  # (..., 1, 1)
    if not bool((size > 0).all()):
        raise ArgumentError("w_q must not be zero in any head: the trace is set along it")
    w_k += (target_trace - (w_q * w_k).sum((-2, -1), keepdim=True)) / size * w_q


@torch.no_grad()
def project_gradients(w_q: Tensor, w_k: Tensor, grad_q: Tensor, grad_k: Tensor) -> None:
    """Take from (grad_q, grad_k), in place, the component along ∇ tr W = (w_k, w_q); all (..., d_head, d_model)."""
    along = (grad_q * w_k + grad_k * w_q).sum((-2, -1), keepdim=True)  # (..., 1, 1)
    size = (w_q.square() + w_k.square()).sum((-2, -1), keepdim=True).clamp_min(torch.finfo(w_q.dtype).tiny)
    grad_q -= along / size * w_k
    grad_k -= along / size * w_q


def _projection_hook(parameters: QKParameters) -> Callable[[Tensor], None]:
    """Project whenever one of the two gradients has grown; projecting is linear, so repeating it does no harm."""

    def hook(_: Tensor) -> None:
        query, key = parameters.query, parameters.key
        if query.grad is not None and key.grad is not None:
            project_gradients(*parameters.weights(), *parameters.split(query.grad, key.grad))

    return hook


def _check_pair(w_q: Tensor, w_k: Tensor) -> None:
    if w_q.shape != w_k.shape or w_q.ndim < 2 or w_q.shape[-2] > w_q.shape[-1]:
        shapes = f"{tuple(w_q.shape)} and {tuple(w_k.shape)}"
        raise ShapeError(f"w_q and w_k must have shapes (..., d_head, d_model) twice, d_head <= d_model, got {shapes}")
