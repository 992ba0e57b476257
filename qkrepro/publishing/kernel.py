"""One papermill run in a kernel of this very Python, with its processor time and peak memory."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import papermill
import psutil
from jupyter_client.kernelspec import KernelSpec
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines


class _MeasuredClient(PapermillNotebookClient):  # type: ignore[misc]
    """Starts the kernel from `sys.executable`, whatever kernels are installed for the user, and reads what it used."""

    used = (0.0, 0.0)

    def create_kernel_manager(self) -> Any:
        manager = super().create_kernel_manager()
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
        manager._kernel_spec = KernelSpec(argv=command, language="python", display_name="Python 3 (ipykernel)")
        return manager

    def papermill_execute_cells(self) -> None:
        super().papermill_execute_cells()
        self.used = process_cost(self.km.provisioner.pid)


class _Engine(NBClientEngine):  # type: ignore[misc]
    """papermill's engine with the client above; `environment` is the kernel's, `used` takes what it used."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> Any:
        log = logging.getLogger("papermill")
        client = _MeasuredClient(nb_man, kernel_name=kernel_name, timeout=options["timeout"], log=log)
        client.execute(env=dict(options["environment"]))
        options["used"].append(client.used)


papermill_engines.register("qkrepro", _Engine)


def run_notebook(
    path: Path, cwd: Path, environment: Mapping[str, str], label: str, timeout: int
) -> tuple[float, float]:
    """Execute a notebook in place, in the folder `cwd`; returns its processor seconds and peak memory in MB.

    path: of the notebook. environment: variables of the kernel. label: what a progress bar says on a terminal. timeout:
    seconds per cell. Raises PapermillExecutionError.
    """
    used: list[tuple[float, float]] = []
    papermill.execute_notebook(
        str(path),
        str(path),
        engine_name="qkrepro",
        kernel_name="python3",
        cwd=str(cwd),
        progress_bar={"desc": label, "disable": None, "leave": False},
        request_save_on_cell_execute=False,
        environment=environment,
        timeout=timeout,
        used=used,
    )
    return used[0]


def process_cost(pid: int) -> tuple[float, float]:
    """Return the processor seconds of a process and its peak memory in MB, or its memory now where none is kept."""
    process = psutil.Process(pid)
    times, memory = process.cpu_times(), process.memory_info()
    peak = getattr(memory, "peak_wset", memory.rss)
    status = Path(f"/proc/{pid}/status")
    if status.is_file():
        lines = status.read_text(encoding="utf-8").splitlines()
        peak = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), peak)
    return times.user + times.system, peak / 1e6
