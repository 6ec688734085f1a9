"""Kernels that begin with their libraries imported: forked from one process that has imported them.

The imports take a kernel longer than the cells of many a chapter; kernels that one process starts share them.
"""

import multiprocessing
import os
import sys
import tempfile
import threading
from contextlib import contextmanager, suppress
from importlib.metadata import EntryPoint

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

SHARED = ["ipykernel.kernelapp", "tnlib.notebook", "tnlib.experiments.resnet"]
NAME = "tnlib-forked"
LONGEST_TMP = 60  # letters; the path of a socket may have about a hundred


@contextmanager
def forked_kernels():
    """Within it, the kernels that this process starts are forked: on Linux, as elsewhere system libraries do not bear it, and where
    temporary files do not lie too deep for the fork server's socket."""
    factory = KernelProvisionerFactory.instance()
    factory.provisioners[NAME] = EntryPoint(NAME, f"{__name__}:{ForkedKernels.__name__}", factory.GROUP_NAME)
    before = factory.default_provisioner_name
    if sys.platform == "linux" and len(tempfile.gettempdir()) <= LONGEST_TMP:
        factory.default_provisioner_name = NAME
    try:
        yield
    finally:
        factory.default_provisioner_name = before


class ForkedKernels(LocalProvisioner):
    """Has the kernels of this process forked by `multiprocessing`'s fork server; its environment is the first kernel's."""

    async def launch_kernel(self, cmd, **options):
        folder, context = options.get("cwd") or os.getcwd(), multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(SHARED)
        process = context.Process(target=_kernel, args=(cmd[cmd.index("-m") + 2:], folder, options["env"]))
        process.start()
        self.process, self.pid, self.cwd = _AsPopen(process), process.pid, folder
        return self.connection_info


def _kernel(arguments: list[str], folder, environment: dict[str, str]) -> None:
    os.setsid()  # as jupyter_client has it: what interrupts the commands does not interrupt the kernel, too
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    import matplotlib
    # As ipykernel has it, by a variable that matplotlib reads as it is imported.
    matplotlib.rcParams["backend"] = environment.get("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    threading.Thread(target=_end_with_who_started_it, daemon=True).start()
    from ipykernel.kernelapp import launch_new_instance
    launch_new_instance(argv=arguments)


def _end_with_who_started_it() -> None:
    """Whoever that is and however it ends; its child, whose end ipykernel would see, is the fork server."""
    multiprocessing.parent_process().join()
    os._exit(1)


class _AsPopen:
    """A process of `multiprocessing` as jupyter_client takes one, which is as `subprocess` has it."""

    stdin = stdout = stderr = None

    def __init__(self, process):
        self.process, self.kill, self.terminate = process, process.kill, process.terminate

    def poll(self):
        return self.process.exitcode

    def wait(self):
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number):
        with suppress(ProcessLookupError):  # it has ended
            os.kill(self.process.pid, number)
