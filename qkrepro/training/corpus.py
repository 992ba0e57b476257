"""Text as token numbers: WikiText-2, a folder of your own, or the synthetic corpus.

Words are what white space separates; every line, blank ones too, ends with `<eos>`. The vocabulary is the words of the
training split, most frequent first, ties in the order of the alphabet; any other word becomes `<unk>`.
Source: book, "LocAteR"; WikiText-2 is Merity et al. 2016, arXiv 1609.07843.

A corpus that needs nothing: words drawn from Zipf's law, some of them repeated from a fixed distance back.

x_t = x_{t − lag} with probability `repeat`, else a fresh word of the Zipf law π(k) ∝ 1/k. Every word is then exactly
Zipf distributed, and the conditional entropy given the past is known, so that a perplexity has a floor: a model that
attends `lag − 1` tokens back reaches it, a model of word frequencies alone stops at the entropy of π.
Source: ours (book, "LocAteR").
"""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from qkrepro.errors import CorpusError, RunError, check_integer, check_number
from qkrepro.files import write_atomically
from qkrepro.models.run_words import EOS, UNK

SPLITS = ("train", "valid", "test")
FILE_NAMES = ("{}.txt", "{}.tokens", "wiki.{}.tokens")
WIKITEXT_2_DIGESTS = {
    "train": "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
    "valid": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
    "test": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
}
HUB_DATASET, HUB_FILE = "Salesforce/wikitext", "wikitext-2-v1/{}-00000-of-00001.parquet"
ENCODING_VERSION = 1  # part of the key of a cached corpus: raise it when the encoding changes


@dataclass(frozen=True)
class Corpus:
    """Three splits of token numbers, each int64, (tokens,); `words[number]` is the word."""

    name: str
    words: list[str]
    train: Tensor
    valid: Tensor
    test: Tensor
    digest: str  # sha256 of what the corpus was made from
    reduced: bool = False  # the vocabulary was cut to the most frequent words
    entropy: float | None = None  # nats per token, where the true conditional entropy is known

    @property
    def vocabulary(self) -> int:
        """Number of distinct tokens."""
        return len(self.words)


def load_corpus(name: str, data: str | Path | None = None, vocabulary: int | None = None) -> Corpus:
    """Return the corpus of `--corpus`: "synthetic", "wikitext-2", or the path of a folder with three text files.

    data: where the files of WikiText-2 lie (default: $QKREPRO_DATA, else the public hub data set is fetched).
    vocabulary: keep only this many most frequent words, `<eos>` and `<unk>` included (the name then says so).
    Raises CorpusError when a file is missing, damaged, empty or not UTF-8; ArgumentError for a vocabulary below 3.
    """
    if vocabulary is not None:
        check_integer("vocabulary", vocabulary, at_least=3)
    if name == "synthetic":
        return synthetic_corpus() if vocabulary is None else synthetic_corpus(vocabulary=vocabulary)
    if name == "wikitext-2":
        return load_folder(find_wikitext_2(data), "wikitext-2", vocabulary, WIKITEXT_2_DIGESTS)
    if not Path(name).is_dir():
        raise CorpusError(f"corpus must be synthetic, wikitext-2, or an existing folder of text, got {name!r}")
    return load_folder(Path(name), Path(name).resolve().name, vocabulary)


def load_folder(
    folder: Path, name: str, vocabulary: int | None = None, digests: Mapping[str, str] | None = None
) -> Corpus:
    """Encode the train, valid and test text in `folder`, or take the encoded form from the cache.

    name: of the corpus. vocabulary: as for `load_corpus`. digests: sha256 that each split's file must have. Raises
    CorpusError as `load_corpus` does.
    """
    files = {split: _find_file(folder, split) for split in SPLITS}
    content = {split: _read_bytes(path) for split, path in files.items()}
    given = {split: hashlib.sha256(raw).hexdigest() for split, raw in content.items()}
    for split, expected in (digests or {}).items():
        if given[split] != expected:
            raise CorpusError(f"{files[split]} is damaged: its SHA-256 must be {expected}, got {given[split]}")
    digest = _digest(*(given[split] for split in SPLITS))
    cached = cache_folder() / f"{_digest(str(ENCODING_VERSION), digest, str(vocabulary))}.safetensors"
    encoded = _read_cached(cached)
    if encoded is None:
        words, ids = _encode({split: _decode(files[split], raw) for split, raw in content.items()}, vocabulary, files)
        _write_cached(cached, words, ids)
    else:
        words, ids = encoded
    ids = {split: tensor.long() for split, tensor in ids.items()}
    reduced = vocabulary is not None and vocabulary == len(words)
    full_name = f"{name} (reduced vocabulary: {len(words)} most frequent words)" if reduced else name
    return Corpus(full_name, words, ids["train"], ids["valid"], ids["test"], digest, reduced)


def find_wikitext_2(data: str | Path | None = None) -> Path:
    """Return a folder with the three files of WikiText-2: `data`, else $QKREPRO_DATA, else fetched into the cache.

    In `data` they may lie directly or in a folder wikitext-2. Raises CorpusError when they are nowhere to be had.
    """
    given = data or os.environ.get("QKREPRO_DATA")
    if given is None:
        return _fetch_wikitext_2(cache_folder() / "wikitext-2")
    for folder in (Path(given), Path(given) / "wikitext-2"):
        if all(any((folder / form.format(split)).is_file() for form in FILE_NAMES) for split in SPLITS):
            return folder
    raise CorpusError(f"data must be a folder with train.txt, valid.txt and test.txt of WikiText-2, got {str(given)!r}")


def cache_folder() -> Path:
    """Return where encoded and fetched corpora are kept: $QKREPRO_CACHE, else the user's cache folder."""
    given = os.environ.get("QKREPRO_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qkrepro"


def hub_text(rows: list[str]) -> str:
    """Return the original file from the hub's rows: one a line, and a blank row (stored empty) is one space."""
    return "".join((row.rstrip("\n") or " ") + "\n" for row in rows)


def _fetch_wikitext_2(folder: Path) -> Path:
    if all((folder / f"{split}.txt").is_file() for split in SPLITS):
        return folder
    try:
        import pyarrow.parquet
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise CorpusError(
            "wikitext-2 is not here: give its folder with --data DIR or $QKREPRO_DATA, or install the extra that "
            'fetches it, pip install "qkrepro[hub]"'
        ) from None
    try:
        for split, stored in zip(SPLITS, ("train", "validation", "test"), strict=True):
            path = hf_hub_download(HUB_DATASET, HUB_FILE.format(stored), repo_type="dataset")
            rows = pyarrow.parquet.read_table(path, columns=["text"]).column("text").to_pylist()
            raw = hub_text(rows).encode()
            if hashlib.sha256(raw).hexdigest() != WIKITEXT_2_DIGESTS[split]:
                raise CorpusError(f"the {split} split fetched from {HUB_DATASET} is damaged or has changed (sha256)")
            write_atomically(folder / f"{split}.txt", raw)
    except CorpusError:
        raise
    except Exception as error:  # the hub client raises many kinds; all of them mean that nothing came
        raise CorpusError(
            f"wikitext-2 could not be fetched from {HUB_DATASET} ({type(error).__name__}: {error}); "
            "give its folder with --data DIR or $QKREPRO_DATA"
        ) from error
    return folder


def _find_file(folder: Path, split: str) -> Path:
    paths = [folder / form.format(split) for form in FILE_NAMES if (folder / form.format(split)).is_file()]
    if len(paths) != 1:
        names = ", ".join(form.format(split) for form in FILE_NAMES)
        raise CorpusError(f"{folder} must have one of {names} for the {split} split, got {len(paths)} of them")
    return paths[0]


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}") from error


def _decode(path: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text: byte {error.start} is 0x{raw[error.start]:02x}") from error


def _encode(
    texts: Mapping[str, str], vocabulary: int | None, files: Mapping[str, Path]
) -> tuple[list[str], dict[str, Tensor]]:
    tokens: dict[str, list[str]] = {}
    for split, text in texts.items():
        lines = text.removesuffix("\n").split("\n")
        tokens[split] = [word for line in lines for word in (*line.split(), EOS)]
        if len(tokens[split]) == len(lines):
            raise CorpusError(f"{files[split]} holds no words: the {split} split is empty")
    words = _vocabulary(tokens, vocabulary)
    number = {word: index for index, word in enumerate(words)}
    unknown = number.get(UNK, -1)
    return words, {
        split: torch.tensor([number.get(word, unknown) for word in tokens[split]], dtype=torch.int32)
        for split in tokens
    }


def _vocabulary(tokens: Mapping[str, list[str]], size: int | None) -> list[str]:
    counts = Counter(tokens["train"])
    words = sorted(counts, key=lambda word: (-counts[word], word))
    outside = any(word not in counts for split in tokens for word in set(tokens[split]))
    if size is not None and size < len(words):
        always = [word for word in words if word in (EOS, UNK)]
        kept = set([word for word in words if word not in (EOS, UNK)][: size - 2]) | set(always)
        return [word for word in words if word in kept] + [UNK] * (UNK not in kept)
    return words + [UNK] * (outside and UNK not in counts)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _ids_digest(ids: Mapping[str, Tensor]) -> str:
    return _digest(*(hashlib.sha256(ids[split].numpy().tobytes()).hexdigest() for split in SPLITS))


def _read_cached(path: Path) -> tuple[list[str], dict[str, Tensor]] | None:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            ids = {split: file.get_tensor(split) for split in SPLITS}
        if metadata["ids"] != _ids_digest(ids):
            return None  # damaged: encode again
        return metadata["words"].split("\n"), ids
    except (OSError, KeyError, safetensors.SafetensorError):
        return None


def _write_cached(path: Path, words: list[str], ids: Mapping[str, Tensor]) -> None:
    metadata = {"words": "\n".join(words), "ids": _ids_digest(ids)}
    with suppress(RunError):  # a cache that cannot be written costs a second next time, nothing else
        write_atomically(path, safetensors.torch.save(dict(ids), metadata))


def zipf_probabilities(vocabulary: int) -> Tensor:
    """Return π(k) ∝ 1/k for k = 1 … vocabulary: float64, (vocabulary,)."""
    check_integer("vocabulary", vocabulary, at_least=2)
    weights = 1.0 / torch.arange(1, vocabulary + 1, dtype=torch.float64)
    return weights / weights.sum()


def conditional_entropy(vocabulary: int, repeat: float) -> float:
    """Return the entropy of the next word given the past, in nats per token; exp of it is the least perplexity.

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
    """Return `tokens` training tokens of `vocabulary` words, a tenth of that for validation and test, from one seed.

    The first `lag` words of a split are fresh, which raises its entropy by a share of about lag/tokens.
    Raises ArgumentError for a repeat outside [0, 1) or sizes that leave an empty split.
    """
    check_number("repeat", repeat, at_least=0.0, below=1)
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
