"""Kernels forked from a process that has imported their libraries: apart from each other, and under the hands of who started them."""

import os
import signal
import subprocess
import sys
import time

import pytest
from jupyter_client import KernelManager

from tnlib.publishing import kernels
from tnlib.publishing.kernels import forked_kernels

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere kernels are started as Jupyter does")


@pytest.fixture
def start():
    """Starts a kernel; returns its manager, and what gives the reply to a cell and the texts that it printed."""
    managers = []

    def begin(**environment):
        with forked_kernels():
            manager = KernelManager(kernel_name="python3")
            manager.start_kernel(env=os.environ | environment, extra_arguments=["--log-level=50"])
        client = manager.blocking_client()
        managers.append((manager, client))
        client.start_channels()
        client.wait_for_ready(60)

        def cell(source, **options):
            printed = []
            note = lambda message: printed.append(message["content"].get("text", ""))
            reply = client.execute_interactive(source, timeout=60, output_hook=note, **options)["content"]
            return reply.get("ename", reply["status"]), "".join(printed).split()

        return manager, cell

    yield begin
    for manager, client in managers:
        client.stop_channels()
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)


def test_they_share_what_is_imported_and_nothing_that_is_set(start, tmp_path, monkeypatch):
    (_, one), (_, other) = start(WHOSE="first"), start(WHOSE="second")
    imported = "import sys; print('tnlib.notebook' in sys.modules, 'torchvision' in sys.modules)"
    assert one(imported) == other(imported) == ("ok", ["True", "True"])
    parent = "import os; print(os.getppid())"
    assert one(parent) == other(parent) != ("ok", [str(os.getpid())])
    assert one("import tnlib; tnlib.mark = 1; os.environ['WHOSE']; print(os.environ['WHOSE'])") == ("ok", ["first"])
    assert other("import tnlib; print(hasattr(tnlib, 'mark'), os.environ['WHOSE'])") == ("ok", ["False", "second"])
    monkeypatch.chdir(tmp_path)
    _, elsewhere = start()
    assert elsewhere("import os; print(os.getcwd(), 'WHOSE' in os.environ)") == ("ok", [str(tmp_path), "False"])


def test_a_figure_that_a_cell_leaves_open_is_shown_below_it(start):
    """As in any notebook, although matplotlib was imported before there was one."""
    _, cell = start()
    _, printed = cell("import matplotlib; print(matplotlib.get_backend())")
    assert "inline" in printed[0]


def test_a_cell_can_be_interrupted_and_a_kernel_that_died_is_found_dead(start):
    manager, cell = start()
    assert manager.is_alive()
    interrupt = "import os, signal, threading; threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()"
    assert cell(interrupt.replace("SIGUSR1", "SIGINT") + "\nimport time; time.sleep(60)")[0] == "KeyboardInterrupt"
    manager.interrupt_kernel()
    assert cell("print(1)") == ("ok", ["1"]), "between cells an interrupt ends nothing"
    pid = manager.provisioner.pid
    assert os.getsid(pid) == pid, "what interrupts this process does not interrupt the kernel"
    os.kill(pid, signal.SIGKILL)
    _until(lambda: not manager.is_alive())


def test_it_ends_when_who_started_it_is_killed():
    code = ("from jupyter_client import KernelManager\nfrom tnlib.publishing import kernels\nkernels.SHARED = ['ipykernel.kernelapp']\n"
            "with kernels.forked_kernels():\n    manager = KernelManager(kernel_name='python3')\n    manager.start_kernel(extra_arguments=['--log-level=50'])\n"
            "client = manager.blocking_client()\nclient.start_channels()\nclient.wait_for_ready(60)\n"
            "print(manager.provisioner.pid, flush=True)\ninput()")
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        kernel = int(parent.stdout.readline())
        assert _runs(kernel)
        parent.kill()
        _until(lambda: not _runs(kernel))


@pytest.mark.parametrize("within", [False, True], ids=["outside", "deep"])
def test_other_kernels_of_this_process_are_started_as_ever(within, tmp_path, monkeypatch):
    """And all where temporary files lie too deep for the path of a socket."""
    if within:
        deep = tmp_path / ("scratch-of-a-batch-job-" * 5)
        deep.mkdir()
        monkeypatch.setattr(kernels.tempfile, "tempdir", str(deep))
    with forked_kernels():
        if within:
            _is_started_as_ever()
    _is_started_as_ever()


def _is_started_as_ever():
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(extra_arguments=["--log-level=50"])
    try:
        assert isinstance(manager.provisioner.process, subprocess.Popen) and not isinstance(manager.provisioner, kernels.ForkedKernels)
    finally:
        manager.shutdown_kernel(now=True)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _until(happened):
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.1)
