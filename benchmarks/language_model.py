"""Tokens per second of training and evaluation at full vocabulary, each way of computing the loss in its own process.

    python benchmarks/language_model.py                     # 33,278 words with Zipf's frequencies
    python benchmarks/language_model.py --data DIR          # the words of WikiText-2

Rates are the best of all repetitions, so that other work on the machine disturbs them little; "per core" divides by
processor time instead of the clock's. Peak memory is that of the process beyond its imports. The targets: the whole
step at least 2 times the plain loss, 2.5 times PyTorch's word_language_model example, 80% of PyTorch's chunked loss
alone.
"""

import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from qkrepro.models.transformer import LanguageModel, ModelConfig, sinusoids
from qkrepro.training.corpus import load_corpus, synthetic_corpus
from qkrepro.training.locater import LocAteR
from qkrepro.training.optimizer import make_optimizer
from qkrepro.training.vocabulary_loss import vocabulary_loss, vocabulary_nll


class Setting(NamedTuple):
    """What every case gets: words, sequences an update, tokens a sequence, updates to time, threads."""

    vocabulary: int
    batch: int
    length: int
    repeats: int
    threads: int

    @property
    def tokens(self) -> int:
        return self.batch * self.length


class Result(NamedTuple):
    """Best seconds an update by the clock and by the processor; bytes of memory at the peak, beyond imports."""

    wall: float
    cpu: float
    peak: float


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain_loss(hidden: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, embedding).flatten(0, -2), targets.flatten())


def pytorch_chunked_loss(hidden: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=256)
    return F.linear_cross_entropy(hidden.flatten(0, -2), embedding, targets.flatten(), options=options)


def ours(precision: str) -> Loss:
    return lambda hidden, embedding, targets: vocabulary_loss(hidden, embedding, targets, precision=precision)


LOSSES: dict[str, Loss] = {"plain": plain_loss, "ours float32": ours("float32"), "ours bf16": ours("bf16")}
if hasattr(F, "linear_cross_entropy"):
    LOSSES["PyTorch chunked"] = pytorch_chunked_loss


class WordLanguageModel(nn.Module):
    """PyTorch's word_language_model example at our sizes: TransformerEncoder, plain linear output, log-softmax."""

    def __init__(self, words: int, length: int, width: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.positions = sinusoids(length, width)[:, None]  # (length, 1, width)
        self.dropout = nn.Dropout(0.1)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(width, 1, width, 0.1), 1)
        self.decoder = nn.Linear(width, words)
        self.mask = nn.Transformer.generate_square_subsequent_mask(length)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) * self.positions.shape[-1] ** 0.5
        x = self.encoder(self.dropout(x + self.positions), self.mask)  # (length, batch, width)
        return F.log_softmax(self.decoder(x).flatten(0, 1), dim=-1)


def example_step(setting: Setting) -> Callable[[], object]:
    """One update of the example: NLL of the log-softmax, clipped gradient, plain gradient descent."""
    model = WordLanguageModel(setting.vocabulary, setting.length)
    tokens = draw_tokens(setting).T.contiguous()

    def step() -> None:
        model.zero_grad()
        F.nll_loss(model(tokens[:-1]), tokens[1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        for parameter in model.parameters():
            parameter.data.add_(parameter.grad, alpha=-1.0)

    return step


def training_step(setting: Setting, loss: Loss, locater: LocAteR | None = None) -> Callable[[], object]:
    model = LanguageModel(ModelConfig(setting.vocabulary), torch.Generator().manual_seed(0))
    optimizer = make_optimizer(model, 1e-3)
    tokens = draw_tokens(setting)

    def step() -> None:
        optimizer.zero_grad()
        value = loss(model.hidden(tokens[:, :-1]), model.embedding.weight, tokens[:, 1:])
        (value if locater is None else value + locater(model)).backward()
        optimizer.step()

    return step


def head_alone(setting: Setting, loss: Loss) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(setting.batch, setting.length, 128, generator=generator).requires_grad_()
    embedding = (torch.randn(setting.vocabulary, 128, generator=generator) / 128**0.5).requires_grad_()
    targets = draw_tokens(setting)[:, 1:]
    return lambda: torch.autograd.grad(loss(hidden, embedding, targets), (hidden, embedding))


def evaluation(setting: Setting, precision: str) -> Callable[[], object]:
    model = LanguageModel(ModelConfig(setting.vocabulary), torch.Generator().manual_seed(0)).eval()
    tokens = draw_tokens(setting)

    @torch.no_grad()
    def evaluate() -> Tensor:
        return vocabulary_nll(model.hidden(tokens[:, :-1]), model.embedding.weight, tokens[:, 1:], precision=precision)

    return evaluate


def locater_alone(setting: Setting) -> Callable[[], object]:
    model, locater = LanguageModel(ModelConfig(setting.vocabulary)), LocAteR(0.01)
    return lambda: locater(model).backward()


def draw_tokens(setting: Setting) -> Tensor:
    shape = (setting.batch, setting.length + 1)
    return torch.randint(setting.vocabulary, shape, generator=torch.Generator().manual_seed(1))


CASES: dict[str, Callable[[Setting], Callable[[], object]]] = {
    **{f"step, {name}": lambda s, loss=loss: training_step(s, loss) for name, loss in LOSSES.items()},
    "step, ours bf16, with LocAteR": lambda s: training_step(s, ours("bf16"), LocAteR(0.01)),
    "step, word_language_model example": example_step,
    **{f"loss alone, {name}": lambda s, loss=loss: head_alone(s, loss) for name, loss in LOSSES.items()},
    "evaluation, float32": lambda s: evaluation(s, "float32"),
    "evaluation, bf16": lambda s: evaluation(s, "bf16"),
    "LocAteR alone": locater_alone,
}


def measure(name: str, setting: Setting, results: "multiprocessing.Queue[Result]") -> None:
    """Run one case in this fresh process and put its Result."""
    torch.set_num_threads(setting.threads)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call = CASES[name](setting)
    call()
    times = []
    for _ in range(setting.repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    results.put(Result(min(t[0] for t in times), min(t[1] for t in times), peak * 1024))


def in_fresh_process(name: str, setting: Setting) -> Result:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=measure, args=(name, setting, results))
    process.start()
    result = results.get()
    process.join()
    return result


def loss_curve(stream: Tensor, setting: Setting, updates: int, precision: str, seed: int) -> Tensor:
    """Training losses (updates,) of the model on a stream of tokens; the seed draws weights and dropout."""
    torch.manual_seed(seed)
    model = LanguageModel(ModelConfig(setting.vocabulary))
    optimizer = make_optimizer(model, 2e-3)
    losses = []
    for update in range(updates):
        start = update * setting.tokens % (len(stream) - setting.tokens)
        inputs, targets = (stream[start + k :][: setting.tokens].view(setting.batch, -1) for k in (0, 1))
        optimizer.zero_grad()
        loss = vocabulary_loss(model.hidden(inputs), model.embedding.weight, targets, precision=precision)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return torch.tensor(losses)


def print_curves(stream: Tensor, setting: Setting, updates: int) -> None:
    """Print how far the bf16 loss curve is from the float32 one, and how far another seed is."""
    float32 = loss_curve(stream, setting, updates, "float32", 0)
    typer.echo(f"\nloss curve over {updates} updates: {float32[0]:.3f} to {float32[-1]:.3f} nats a token (float32)")
    others = {"bf16, same seed": ("bf16", 0), "float32, another seed": ("float32", 1)}
    for name, (precision, seed) in others.items():
        gap = (loss_curve(stream, setting, updates, precision, seed) - float32).abs()
        typer.echo(f"  distance of {name}: largest {gap.max():.5f}, mean {gap.mean():.5f} nats a token")


def main(
    data: Annotated[Path | None, typer.Option(help="Folder of WikiText-2; without it, synthetic words.")] = None,
    batch: Annotated[int, typer.Option(help="Sequences an update.")] = 16,
    length: Annotated[int, typer.Option(help="Tokens a sequence.")] = 256,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.")] = 2,
    repeats: Annotated[int, typer.Option(help="Timed updates a case and round.")] = 5,
    rounds: Annotated[int, typer.Option(help="Rounds over all cases; the best counts.")] = 2,
    curve_updates: Annotated[int, typer.Option(help="Updates of the loss curves; 0 leaves them out.")] = 60,
    json_to: Annotated[Path | None, typer.Option("--json", help="Write the numbers to this file too.")] = None,
) -> None:
    """Print the rates of all cases, their ratios to the targets, and the distance of the bf16 loss curve."""
    corpus = load_corpus("wikitext-2", data) if data else synthetic_corpus(33_278, 500_000)
    setting = Setting(corpus.vocabulary, batch, length, repeats, threads)
    typer.echo(
        f"{corpus.vocabulary} words, {setting.tokens} tokens an update, {threads} thread(s), torch {torch.__version__}"
    )
    measured: dict[str, Result] = {}
    for _ in range(rounds):
        for name in CASES:
            new = in_fresh_process(name, setting)
            old = measured.get(name, new)
            measured[name] = Result(min(old.wall, new.wall), min(old.cpu, new.cpu), max(old.peak, new.peak))
    typer.echo(f"{'':38s}{'tokens/s':>10s}{'per core':>10s}{'peak MB':>9s}")
    for name, result in measured.items():
        rates = [f"{setting.tokens / seconds:10,.0f}" for seconds in (result.wall, result.cpu)]
        typer.echo(f"{name:38s}{''.join(rates)}{result.peak / 1e6:9,.0f}")
    print_ratios(measured)
    if json_to is not None:
        json_to.write_text(json.dumps({name: result._asdict() for name, result in measured.items()}, indent=1))
    if curve_updates:
        torch.set_num_threads(threads)
        print_curves(corpus.train, setting, curve_updates)


def print_ratios(measured: dict[str, Result]) -> None:
    ratios = [
        ("step, plain", "step, ours bf16", "whole step, bf16 to the plain loss", 2.0),
        ("step, plain", "step, ours float32", "whole step, float32 to the plain loss", None),
        ("step, word_language_model example", "step, ours bf16", "whole step, bf16 to the example", 2.5),
        ("loss alone, PyTorch chunked", "step, ours bf16", "whole step, bf16 to PyTorch's chunked loss alone", 0.8),
        ("loss alone, PyTorch chunked", "step, ours float32", "whole step, float32 to that", None),
        ("step, ours bf16", "evaluation, bf16", "evaluation to training, bf16", 1.0),
        ("step, ours bf16", "LocAteR alone", "LocAteR's share of a step", None),
    ]
    typer.echo(f"\n{'':52s}{'by clock':>10s}{'per core':>10s}")
    for base, other, label, target in ratios:
        if base in measured:
            a, b = measured[base], measured[other]
            values = (a.wall / b.wall, a.cpu / b.cpu) if "share" not in label else (b.wall / a.wall, b.cpu / a.cpu)
            wanted = "" if target is None else f"   (at least {target:g})"
            typer.echo(f"{label:52s}" + "".join(f"{value:10.3f}" for value in values) + wanted)


if __name__ == "__main__":
    typer.run(main)
