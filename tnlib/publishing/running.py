"""Running notebooks: papermill, several at once, each only when something that it depends on has changed."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import distributions
from multiprocessing import get_context
from pathlib import Path

import nbformat
import torch
from traitlets.config import Config

from ..experiments.files import PUBLISHED, ROOT, RUNS, exclusive, write_json
from ..experiments.provenance import RECORDED, now, provenance
from .jobs import Job
from .kernels import LONGEST_TMP, forked_kernels
from .parameters import changed
from .section import ASKED, OUTPUT_VARIABLE, digest, own_results

PACKAGES = (*RECORDED, "matplotlib", "papermill", "jupyter-book")  # whose versions the record of a run names


class NotebookError(RuntimeError):
    """A notebook stopped at a cell."""


@contextmanager
def held(jobs: list[Job], say=print):
    """No other process runs these jobs, or renders pages from them, meanwhile; waits, and says so, while one does."""
    with ExitStack() as stack:
        for job in sorted(jobs, key=lambda job: job.folder):  # in one order, so that no two wait for each other
            job.folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(job.folder.with_name(f".{job.folder.name}.lock"),
                                          partial(say, f"{job.section.name}: waits for another process that is at work in {job.folder}")))
        yield


def run(jobs: list[Job], say=print) -> None:
    """Run the jobs whose stamp is not up to date, as many at once as there are processors, and say which and why.

    Raises `NotebookError` naming the notebook, the cell and the error, after the other notebooks have ended; the notebook
    as far as it ran is left beside its last good run, which stays.
    """
    todo = []
    for job in jobs:
        stamp = _stamp(job)  # before it runs: an edit meanwhile makes it run again
        reasons = outdated(job, stamp)
        say(f"{job.section.name}: {'runs: ' + ', '.join(reasons) if reasons else 'up to date'}")
        if reasons:
            todo.append((job, stamp))
    if not todo:
        return
    problems = []
    for (problem, seconds), (job, _) in zip(_executed(todo), todo):
        say(f"{job.section.name}: {'failed' if problem else 'done'} after {seconds:.0f} s")
        problems += [problem] if problem else []
    if problems:
        raise NotebookError("\n".join(problems))


def _executed(todo):
    """What `_execute` returns of each job and its stamp, in their order."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(len(todo), cores)
    threads = max(1, torch.get_num_threads() // workers)
    if workers == 1:  # here: another process would first have to import everything, which takes seconds
        yield from (_execute(job, stamp, 0, threads) for job, stamp in todo)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_execute, job, stamp, position, threads) for position, (job, stamp) in enumerate(todo)]
        yield from (future.result() for future in futures)


def _execute(job: Job, stamp: dict, position: int, threads: int) -> tuple[str | None, float]:
    """Run one notebook in this process; return what went wrong, and the seconds it took."""
    beside = job.folder.with_name(f".{job.folder.name}.running")
    before = beside / "before"  # the last good run, removed only when the new one is in its place

    def clear():
        if before.exists() and not job.folder.exists():
            before.rename(job.folder)
        shutil.rmtree(beside, ignore_errors=True)

    clear()  # what a run left that was killed
    made = replace(job, folder=beside / job.folder.name)  # takes the place of the last good run when it has ended
    try:
        problem, seconds = _execute_into(made, stamp, position, threads)
        if problem is None:
            if job.folder.exists():
                job.folder.rename(before)
            made.folder.rename(job.folder)
        else:
            job.folder.mkdir(exist_ok=True)
            shutil.copy(made.executed, job.stopped)
            problem += f"The notebook as far as it ran: {job.stopped}"
    finally:
        clear()
    return problem, seconds


def _execute_into(job: Job, stamp: dict, position: int, threads: int) -> tuple[str | None, float]:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    asked = {OUTPUT_VARIABLE: str(job.folder), "OMP_NUM_THREADS": str(threads),
             "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),  # beside other programs, threads that spin take ten times as long
             "PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # the debugger's warning is not the reader's
    job.folder.mkdir(parents=True)
    record = {"started": now(), **provenance(packages=PACKAGES), "threads": threads, "parameters": job.values,
              "changed": changed(job.section.parameters, job.values)}  # now: the notebook may be edited meanwhile
    begun = time.perf_counter()
    bar = {"desc": job.section.name, "position": position, "leave": False} if sys.stderr.isatty() else False
    try:
        short = "/tmp" if len(tempfile.gettempdir()) > LONGEST_TMP and os.access("/tmp", os.W_OK) else None
        with tempfile.TemporaryDirectory(prefix="tnlib-", dir=short) as sockets, _environment(asked), forked_kernels():
            # Files of this user instead of ports of this machine: no two kernels meet, and no warning on the page.
            local = Config(ConnectionFileMixin={"transport": "ipc", "ip": f"{sockets}/kernel"})
            papermill.execute_notebook(job.section.path, job.executed, parameters=job.values, kernel_name="python3",
                                       progress_bar=bar, cwd=job.section.path.parent, config=local,
                                       coalesce_streams=True,
                                       extra_arguments=["--log-level=50"])  # its end is no error to report
    except PapermillExecutionError as error:
        source = error.source.strip().splitlines() or [""]
        own = [cell.source for cell in nbformat.read(job.section.path, as_version=4).cells]
        number = own.index(error.source) if error.source in own else error.cell_index  # papermill adds a cell
        problem = (f"{os.path.relpath(job.section.path, ROOT)} stopped at cell {number + 1} "
                   f"({source[0]}{' …' if len(source) > 1 else ''}):\n  {error.ename}: {error.evalue}\n")
        return problem, time.perf_counter() - begun
    except DeadKernelError:
        return f"{os.path.relpath(job.section.path, ROOT)}: its kernel died (out of memory?). ", time.perf_counter() - begun
    try:
        _label_figures(job.executed)
    except NotebookError as error:
        return f"{error}. ", time.perf_counter() - begun
    write_json(job.folder / "run.json", record | {"seconds": round(time.perf_counter() - begun, 1)})
    stamp = stamp | {"your results": _own_results(job, as_read=True)}  # with what the page itself has measured, and not with what came after
    write_json(job.folder / "stamp.json", stamp)  # last: with it, everything is there
    return None, time.perf_counter() - begun


@contextmanager
def _environment(variables: dict[str, str]):
    """What this process starts has these environment variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _label_figures(path: Path) -> None:
    """Tell Jupyter Book each figure's label, caption and alternative text: it reads them from the cell's metadata."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        labels = [output.metadata["tnlib"] for output in cell.get("outputs", []) if "tnlib" in output.get("metadata", {})]
        if len(labels) > 1:
            raise NotebookError(f"{path.name}: one cell makes {len(labels)} figures "
                                f"({', '.join(label['id'] for label in labels)}); give each its own cell")
        if labels:
            label = labels[0]
            cell.metadata["mystnb"] = {"figure": {"name": label["id"], "caption": label["caption"]},
                                       "image": {"alt": label["alt"]}}
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata["tags"].append("remove-cell")  # the table of parameters shows them
    nbformat.write(notebook, path)


# ---- what a notebook depends on ----------------------------------------------------------------------------------

def _stamp(job: Job) -> dict[str, str]:
    beside = [ROOT / "CITATION.cff", *sorted((ROOT / "book").glob("*.yml"))]  # the claims and their amendments
    return {"its text": digest([job.section.path, *filter(Path.is_file, beside)]),
            "its parameters": hashlib.sha256(json.dumps(job.values, sort_keys=True).encode()).hexdigest(),
            "tnlib": digest(path for ending in ("py", "pyi", "mplstyle") for path in sorted((ROOT / "tnlib").rglob(f"*.{ending}"))),
            "published/": _published(), "your networks or data": _own_files(job), "your results": _own_results(job),
            "installed packages": _packages()}


def outdated(job: Job, stamp: dict[str, str] | None = None) -> list[str]:
    """Why a job has to run: what has changed since it last did; nothing where it is up to date."""
    stamp = stamp or _stamp(job)
    try:
        before = json.loads((job.folder / "stamp.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ["never run to its end"]
    return [f"{what} changed" for what, digest in stamp.items() if before.get(what) != digest]


def _own_files(job: Job) -> str:
    """Of what a page that is not the book's may show: your own networks and images."""
    if _of_the_book(job):
        return ""
    images = [Path(value) for value in job.values.values() if str(value).endswith(".npz")]
    return digest(path for path in (*sorted((RUNS / "weights").glob("*.json")), *images) if path.is_file())


def _own_results(job: Job, as_read: bool = False) -> str:
    """Of what such a page may show: those of your own results that it last looked for, as they are or `as_read` by it."""
    if _of_the_book(job):
        return ""
    try:
        asked = json.loads((job.folder / ASKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        asked = {}
    return json.dumps(asked if as_read else {pattern: own_results(pattern) for pattern in asked}, sort_keys=True)


def _of_the_book(job: Job) -> bool:
    return not job.values or job.values == {name: parameter.default for name, parameter in job.section.parameters.items()}


@cache
def _published() -> str:
    return digest(sorted(path for path in PUBLISHED.rglob("*") if path.is_file()))


@cache
def _packages() -> str:
    return hashlib.sha256("\n".join(sorted(f"{d.name}=={d.version}" for d in distributions())).encode()).hexdigest()
