"""`qkrepro train`: one run from its configuration to its record, which a killed and resumed run reaches unchanged.

Batches: each epoch shifts the training stream by a random offset below `length`, cuts it into blocks of `length`
tokens and visits them in random order; offset and order follow from seed and epoch alone. The blocks left over after
the last full batch are not visited in that epoch. Equal bytes are promised on the processor; on CUDA some sums have no
fixed order. Source: book, "LocAteR".
"""

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from qkrepro.errors import CorpusError, RunError
from qkrepro.files import remove_abandoned, write_atomically
from qkrepro.models.run_words import VOCABULARY
from qkrepro.training.configuration import RunConfiguration, described
from qkrepro.training.corpus import Corpus, load_corpus
from qkrepro.training.initial_weights import build_model
from qkrepro.training.locater import LocAteR
from qkrepro.training.measurements import Block, cut, mean_loss, measure
from qkrepro.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from qkrepro.training.peers import after_update
from qkrepro.training.records import environment, is_recorded, write_arrays, write_json, write_metrics
from qkrepro.training.resume import BEST, CHECKPOINT, load_checkpoint, save_checkpoint
from qkrepro.training.running_covariance import IncrementCovariances
from qkrepro.training.vocabulary_loss import vocabulary_loss


class Interrupted(RunError):
    """A run that was asked to stop, and has saved where it stands."""


class Busy(RunError):
    """A run that another process is working on."""


def train(
    configuration: RunConfiguration,
    out: str | Path,
    *,
    data: str | Path | None = None,
    progress: bool = True,
    checkpoint_seconds: float = 60.0,
) -> Path:
    """Run or continue a configuration below `out` and return the folder of its record; a finished run is not repeated.

    data: where WikiText-2 lies. progress: show a bar on stderr. checkpoint_seconds: time between checkpoints.
    Raises CorpusError for the corpus; RunError when the folder cannot be written or the loss is not finite; Interrupted
    after Ctrl-C or SIGTERM, once the checkpoint is saved; Busy while another process works on the same run.
    """
    corpus = load_corpus(configuration.corpus, data, configuration.vocabulary)
    folder = run_folder(configuration, corpus, out)
    with _locked(folder):
        remove_abandoned(folder)
        if not is_recorded(folder):
            _Run(configuration, corpus, folder).to_the_end(progress, checkpoint_seconds)
    return folder


def run_folder(configuration: RunConfiguration, corpus: Corpus, out: str | Path) -> Path:
    """Return the folder of a run below `out`: a readable beginning and the run's identity."""
    identity = described(configuration, corpus)["identity"]
    return Path(out) / f"kappa{configuration.kappa:g}-seed{configuration.seed}-{identity}"


def updates_an_epoch(corpus: Corpus, configuration: RunConfiguration) -> int:
    """Return the updates of one pass over the training split. Raises CorpusError when it is too short for a batch."""
    blocks = (len(corpus.train) - configuration.length) // configuration.length
    if blocks < configuration.batch:
        raise CorpusError(
            f"the training split must have at least one batch of {configuration.batch} blocks of length "
            f"{configuration.length}, got {max(blocks, 0)} ({len(corpus.train)} tokens)"
        )
    return blocks // configuration.batch


def epoch_blocks(tokens: int, length: int, seed: int, epoch: int) -> Tensor:
    """Return where the blocks of an epoch start, in the order they are visited: int64, ((tokens − length)/length,)."""
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    offset = torch.randint(length, (1,), generator=generator)
    order = torch.randperm((tokens - length) // length, generator=generator)
    return order * length + offset


class _Run:
    def __init__(self, configuration: RunConfiguration, corpus: Corpus, folder: Path) -> None:
        self.config, self.corpus, self.folder = configuration, corpus, folder
        self.about = described(configuration, corpus)
        torch.set_num_threads(configuration.threads)
        torch.manual_seed(configuration.seed)
        self.per_epoch = updates_an_epoch(corpus, configuration)
        self.last = max(1, round(configuration.epochs * self.per_epoch))
        self.valid = cut(corpus.valid, configuration.length, configuration.valid_tokens)
        self.measured = cut(
            corpus.valid, configuration.length, configuration.measured_sequences * configuration.length
        )[0].inputs
        self.model = build_model(configuration, corpus.vocabulary).to(configuration.device)
        self.covariances = IncrementCovariances(self.model) if configuration.penalised == "tokens" else None
        self.locater = _locater(configuration, self.covariances)
        self.after_update = after_update(self.model, configuration.peer, configuration.peer_strength)
        self.optimizer = make_optimizer(
            self.model, configuration.learning_rate, weight_decay=configuration.weight_decay
        )
        self.progress = load_checkpoint(
            folder, self.about["identity"], self.model, self.optimizer, configuration.device
        )
        if self.covariances:
            self.covariances.values = self.progress.covariances
        if self.locater:
            self.locater.start(self.model, recentre=not self.progress.rows)
        self.session = {"from_update": self.progress.update, "training_seconds": 0.0, "evaluation_seconds": 0.0}
        self.progress.sessions.append(self.session | environment() | {"device_name": _device_name(configuration)})
        self.progress.environment = self.progress.environment or _environment(self.progress.sessions[-1])
        self.starts = (-1, torch.empty(0))
        self.stop = False

    def to_the_end(self, bar: bool, checkpoint_seconds: float) -> None:
        progress, saved = self.progress, time.monotonic()
        write_json(self.folder / "running.json", self.about)  # fails at once where the folder cannot be written
        write_atomically(self.folder / VOCABULARY, "".join(f"{word}\n" for word in self.corpus.words).encode())
        quiet = 1.0 if sys.stderr.isatty() else 60.0  # seconds between two states of the bar
        with (
            _signals(self),
            tqdm(total=self.last, initial=progress.update, disable=not bar, unit="update", mininterval=quiet) as shown,
        ):
            if not progress.rows:
                self.evaluate()
            while progress.update < self.last and not self.is_enough():
                self.step()
                if progress.update % self.config.evaluate_every == 0 or progress.update == self.last:
                    self.evaluate()
                shown.set_postfix(self.figures(), refresh=False)
                shown.update()
                if self.stop or time.monotonic() - saved > checkpoint_seconds:
                    self.save()
                    saved = time.monotonic()
                if self.stop:
                    raise Interrupted(f"stopped at update {progress.update} of {self.last}; saved in {self.folder}")
        self.finish()

    def step(self) -> None:
        began, progress = time.perf_counter(), self.progress
        inputs, targets = self.batch(progress.update)
        rate = self.rate(progress.update + 1)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        hidden = self.model.hidden(inputs)  # (batch, length, d_model)
        loss = vocabulary_loss(hidden, self.model.embedding.weight, targets, precision=self.config.precision)
        penalty = self.locater(self.model) if self.locater else torch.zeros(())
        torch.autograd.backward(loss + penalty)
        self.optimizer.step()
        self.after_update(rate)
        progress.update += 1
        progress.loss_sum += self.checked(float(loss.detach()))
        progress.penalty_sum += float(penalty.detach())
        self.session["training_seconds"] += time.perf_counter() - began

    def rate(self, update: int) -> float:
        peak, warmup = self.config.learning_rate, self.config.warmup
        return learning_rate(update, peak=peak, warmup=warmup, schedule=self.config.schedule, last=self.last)

    def batch(self, update: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(update, self.per_epoch)
        if self.starts[0] != epoch:
            blocks = epoch_blocks(len(self.corpus.train), self.config.length, self.config.seed, epoch)
            self.starts = (epoch, blocks)
        first = self.starts[1][place * self.config.batch : (place + 1) * self.config.batch]  # (batch,)
        tokens = self.corpus.train[first[:, None] + torch.arange(self.config.length + 1)]  # (batch, length + 1)
        tokens = tokens.to(self.config.device, non_blocking=True)
        return tokens[:, :-1], tokens[:, 1:]

    def checked(self, loss: float) -> float:
        if math.isfinite(loss):
            return loss
        kept = (self.folder / CHECKPOINT).exists()
        last_good = f"the last good checkpoint is {self.folder / CHECKPOINT}" if kept else "no checkpoint was saved yet"
        raise RunError(f"the loss of update {self.progress.update} is {loss}, the run stops; {last_good}")

    def evaluate(self) -> None:
        began, progress, config = time.perf_counter(), self.progress, self.config
        since = progress.update - (progress.rows[-1]["update"] if progress.rows else 0)
        if since:
            train_loss, penalty = progress.loss_sum / since, progress.penalty_sum / since
        else:
            first = Block(*self.batch(0))
            train_loss, penalty = mean_loss(self.model, [first], config.batch, config.precision), 0.0
        loss = self.checked(mean_loss(self.model, self.valid, config.batch, config.precision))
        measured = measure(self.model, self.measured)
        progress.rows.append(
            {
                "update": progress.update,
                "epoch": progress.update / self.per_epoch,
                "tokens": progress.update * config.batch * config.length,
                "train_loss": train_loss,
                "penalty": penalty,
                "valid_loss": loss,
                "valid_perplexity": math.exp(loss),
            }
            | measured.numbers
        )
        progress.arrays.append({name: torch.from_numpy(array) for name, array in measured.arrays.items()})
        progress.loss_sum = progress.penalty_sum = 0.0
        if len(progress.rows) == 1 or loss < progress.rows[progress.best]["valid_loss"]:
            progress.best = len(progress.rows) - 1
            write_atomically(self.folder / BEST, safetensors.torch.save(self.weights()))
        write_metrics(self.folder, progress.rows)
        self.session["evaluation_seconds"] += time.perf_counter() - began

    def is_enough(self) -> bool:
        waited = len(self.progress.rows) - 1 - self.progress.best
        return 0 < self.config.patience <= waited

    def figures(self) -> dict[str, str]:
        row, seconds = self.progress.rows[-1], max(self.session["training_seconds"], 1e-9)
        tokens = (self.progress.update - self.session["from_update"]) * self.config.batch * self.config.length
        shown = {"loss": f"{row['train_loss']:.3f}", "perplexity": f"{row['valid_perplexity']:.1f}"}
        return shown | {"entropy": f"{row['valid_entropy']:.2f}", "tokens/s": f"{tokens / seconds:.0f}"}

    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}

    def save(self) -> None:
        if not all(bool(torch.isfinite(value).all()) for value in self.model.parameters()):
            self.checked(math.nan)
        self.progress.sessions[-1] |= self.session | {"to_update": self.progress.update}
        self.progress.covariances = self.covariances.values if self.covariances else []
        save_checkpoint(
            self.folder, self.about["identity"], self.progress, self.model, self.optimizer, self.config.device
        )

    def finish(self) -> None:
        progress, config = self.progress, self.config
        end = self.final_losses()
        row = progress.rows[progress.best]
        summary = {f"best_{name}" if name in ("update", "epoch") else name: value for name, value in row.items()}
        if progress.best < len(progress.rows) - 1:
            self.model.load_state_dict(safetensors.torch.load_file(self.folder / BEST))
            summary |= self.final_losses()
        else:
            summary |= end
        summary |= {f"end_{name}": value for name, value in end.items()}
        summary |= {"last_update": progress.update, "stopped_early": progress.update < self.last}
        self.progress.sessions[-1] |= self.session | {"to_update": progress.update}
        write_metrics(self.folder, progress.rows)
        write_arrays(self.folder, {"update": np.array([row["update"] for row in progress.rows])} | self.stacked())
        write_json(self.folder / "timing.json", _timing(progress.sessions, config))
        write_json(self.folder / "run.json", self.about | {"environment": progress.environment, "summary": summary})
        for name in (CHECKPOINT, "running.json"):
            (self.folder / name).unlink(missing_ok=True)

    def final_losses(self) -> dict[str, float]:
        """Return the loss and perplexity of the model as it stands on all of the validation and the test split."""
        losses: dict[str, float] = {}
        for name, split in (("valid", self.corpus.valid), ("test", self.corpus.test)):
            blocks = cut(split, self.config.length, None)
            loss = self.checked(mean_loss(self.model, blocks, self.config.batch, self.config.precision))
            losses |= {f"{name}_loss": loss, f"{name}_perplexity": math.exp(loss)}
        return losses

    def stacked(self) -> dict[str, Any]:
        arrays = self.progress.arrays
        return {name: torch.stack([array[name] for array in arrays]).numpy() for name in arrays[0]}


def _locater(configuration: RunConfiguration, covariances: IncrementCovariances | None) -> LocAteR | None:
    """Return the regulariser of a run; the baseline has none and pays nothing for it."""
    if configuration.kappa == 0:
        return None
    return LocAteR(
        configuration.kappa,
        configuration.target_trace,
        scale=configuration.scale,
        mean=configuration.mean,
        tokens=covariances,
    )


def _timing(sessions: list[dict[str, Any]], config: RunConfiguration) -> dict[str, Any]:
    """Sum what the sessions took; updates that were lost when the run was killed count in no session."""
    training, evaluation = (sum(s[f"{name}_seconds"] for s in sessions) for name in ("training", "evaluation"))
    tokens = sum(s["to_update"] - s["from_update"] for s in sessions) * config.batch * config.length
    total = {"training_seconds": training, "evaluation_seconds": evaluation, "sessions": sessions}
    return total | {"tokens_per_second": tokens / training if training else None}


def _environment(session: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in session.items() if not name.endswith(("_update", "_seconds"))}


def _device_name(configuration: RunConfiguration) -> str:
    return torch.cuda.get_device_name() if configuration.device == "cuda" else "processor"


@contextmanager
def _signals(run: _Run) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into a request to save and stop after the update; a second one acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers: a worker of a sweep is stopped by its own program
        return

    def ask(number: int, frame: object) -> None:
        run.stop = True
        for name, handler in before.items():
            signal.signal(name, handler)

    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    for name in before:
        signal.signal(name, ask)
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the run's lock; the system releases it when the process ends, however it ends. Raises Busy, RunError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise Busy(f"{folder} is being worked on by another process") from None
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()
