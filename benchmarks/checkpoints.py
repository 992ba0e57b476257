"""Reading a checkpoint's QK eigenspectrum, file to table: the command `qkrepro spectrum` against what is used today.

    python benchmarks/checkpoints.py                                     # ours, and transformers with d × d eigenvalues
    python benchmarks/checkpoints.py --make-peer /tmp/peer               # installs TransformerLens there, measures it
    python benchmarks/checkpoints.py --peer-python /tmp/peer/bin/python  # measures an environment made before
    python benchmarks/checkpoints.py --cases llama-7b                    # the shapes of Llama 7B alone, a 2.1 GB file

Each measurement is a process of its own; rounds go through all of them in turn. A first round, not counted, leaves
the bytecode of what is imported, as an installation does that compiles or has run before: without it every process
would compile its libraries anew. Reported: wall and processor seconds of the whole process, the same without imports,
and peak resident memory (Linux's VmHWM), which counts pages of mapped files. The models are random weights with the
shapes of GPT-2 small and of Llama 7B (query and key tensors alone), and MiniLM's own.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import pandas as pd

OURS = """
import os, sys, time
begin = time.perf_counter(), time.process_time()
os.environ |= {{"OMP_NUM_THREADS": "{threads}", "OPENBLAS_NUM_THREADS": "1"}}  # the command sets the second itself
import qkrepro.cli.app, qkrepro.cli.spectrum
loaded = time.perf_counter(), time.process_time()
sys.argv = ["qkrepro", "spectrum", {model!r}, "--format", "csv", "--out", {out!r}, *{options!r}]
try:
    qkrepro.cli.app.main()
except SystemExit as stopped:
    assert not stopped.code
assert sum(1 for _ in open({out!r})) == {heads} + 1
"""
PLAIN = """
import sys, time
begin = time.perf_counter(), time.process_time()
import torch, pandas, transformers
from transformers import AutoModel
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
torch.set_num_threads({threads})
loaded = time.perf_counter(), time.process_time()
config = transformers.AutoConfig.from_pretrained({model!r})
model = AutoModel.from_pretrained({model!r}).double()
rows = []
for layer in range(config.num_hidden_layers):
    if config.model_type == "gpt2":
        q, k, _ = model.h[layer].attn.c_attn.weight.mT.chunk(3)
    else:
        attention = model.encoder.layer[layer].attention.self
        q, k = attention.query.weight, attention.key.weight
    for head, (a, b) in enumerate(zip(q.chunk(config.num_attention_heads), k.chunk(config.num_attention_heads))):
        values = torch.linalg.eigvals((a.mT @ b).detach())
        rows.append((layer, head, values.sum().real.item(), values.abs().max().item()))
assert len(rows) == {heads}
pandas.DataFrame(rows, columns=["layer", "head", "trace", "largest"]).to_csv({out!r}, index=False)
"""
TRANSFORMER_LENS = """
import sys, time
begin = time.perf_counter(), time.process_time()
import torch, pandas
from transformer_lens.model_bridge import TransformerBridge
torch.set_num_threads({threads})
loaded = time.perf_counter(), time.process_time()
model = TransformerBridge.boot_transformers({model!r})  # raw weights: nothing is folded or centred
values = model.QK.eigenvalues  # (layers, heads, d_head)
rows = []
for layer, heads in enumerate(values):
    for head, eigenvalues in enumerate(heads):
        rows.append((layer, head, eigenvalues.sum().real.item(), eigenvalues.abs().max().item()))
assert len(rows) == {heads}
pandas.DataFrame(rows, columns=["layer", "head", "trace", "largest"]).to_csv({out!r}, index=False)
"""
REPORT = """
import json
ended = time.perf_counter(), time.process_time()
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"work_wall": ended[0] - loaded[0], "work_cpu": ended[1] - loaded[1], "peak_mb": peak / 1024}))
"""


def measure(python: str, script: str, folder: Path) -> dict[str, float]:
    """Run a script in a process of its own: seconds of wall and processor, peak memory, and its own report."""
    report = folder / "report.json"
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with report.open("w") as out:
        begin = time.perf_counter()
        child = subprocess.Popen(
            [python, "-c", script], stdout=out, stderr=subprocess.PIPE, cwd=folder, env=environment
        )
        assert child.stderr is not None
        errors = child.stderr.read().decode()
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - begin
    if status:
        raise SystemExit(f"a measurement failed:\n{errors[-2000:]}")
    said = json.loads(report.read_text().strip().splitlines()[-1])
    cpu = usage.ru_utime + usage.ru_stime
    return {"wall": wall, "cpu": cpu, **said}


def make_gpt2(folder: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(folder)


def make_llama(folder: Path, layers: int = 32, d_model: int = 4096) -> None:
    """Query and key tensors of a 7-billion-parameter Llama in bf16, written layer by layer to spare memory."""
    import torch

    folder.mkdir(exist_ok=True)
    size = 2 * d_model * d_model
    names = [f"model.layers.{n}.self_attn.{part}_proj.weight" for n in range(layers) for part in ("q", "k")]
    header = {
        name: {"dtype": "BF16", "shape": [d_model, d_model], "data_offsets": [at * size, (at + 1) * size]}
        for at, name in enumerate(names)
    }
    raw = json.dumps(header).encode()
    generator = torch.Generator().manual_seed(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for _ in names:
            weights = (0.02 * torch.randn(d_model, d_model, generator=generator)).bfloat16()
            file.write(weights.view(torch.uint8).numpy().tobytes())
    config = {"model_type": "llama", "hidden_size": d_model, "num_attention_heads": 32, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))


def make_peer(folder: Path) -> str:
    """An environment with TransformerLens that borrows PyTorch from this one; returns its python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    where = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    (Path(where.strip()) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([python, "-m", "pip", "install", "-q", "transformer-lens"], check=True)
    return python


def measurements(work: Path, cases: list[str], peer: str | None, threads: int) -> dict[str, tuple[str, str]]:
    """Name to (python, script) of everything to measure."""
    from qkrepro.models.minilm import minilm_folder

    found: dict[str, tuple[str, str]] = {}

    def add(
        name: str,
        template: str,
        model: Path,
        heads: int,
        *,
        python: str = sys.executable,
        options: tuple[str, ...] = (),
    ) -> None:
        values = {
            "model": str(model),
            "heads": heads,
            "threads": threads,
            "out": str(work / "table.csv"),
            "options": options,
        }
        found[name] = python, template.format(**values) + REPORT

    if "minilm" in cases:
        add("minilm, ours", OURS, minilm_folder(), 72)
        add("minilm, transformers and full matrices", PLAIN, minilm_folder(), 72)
    if "gpt2" in cases:
        make_gpt2(work / "gpt2")
        add("gpt2, ours", OURS, work / "gpt2", 144)
        add("gpt2, ours, without chance", OURS, work / "gpt2", 144, options=("--draws", "2"))  # the peer draws nothing
        add("gpt2, transformers and full matrices", PLAIN, work / "gpt2", 144)
        if peer:
            add("gpt2, TransformerLens", TRANSFORMER_LENS, work / "gpt2", 144, python=peer)
    if "llama-7b" in cases:
        make_llama(work / "llama")
        add("llama-7b, ours", OURS, work / "llama", 1024)
        add("llama-7b, ours, moments only", OURS, work / "llama", 1024, options=("--moments-only",))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["minilm", "gpt2", "llama-7b"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-python", help="python of an environment with TransformerLens")
    parser.add_argument("--make-peer", type=Path, help="make such an environment in this folder first")
    options = parser.parse_args()
    peer = make_peer(options.make_peer) if options.make_peer else options.peer_python
    with tempfile.TemporaryDirectory(prefix="checkpoints-") as name:
        every = measurements(Path(name), options.cases, peer, options.threads)
        rows = []
        for python, script in every.values():
            measure(python, script, Path(name))
        for number in range(options.rounds):
            for what, (python, script) in every.items():
                rows.append({"what": what, "round": number, **measure(python, script, Path(name))})
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows).drop(columns="round").groupby("what", sort=False).median()
    print(f"\nmedian of {options.rounds}, {options.threads} threads; load of the machine {os.getloadavg()[0]:.1f}")
    print(table.round(2).to_string())


if __name__ == "__main__":
    main()
