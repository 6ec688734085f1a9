"""The head of a page: its parameters checked and shown, and where its figures go."""

from typing import Any

from IPython import get_ipython

from ..experiments.allocator import keep_freed_memory
from .figures import show_parameters
from .parameters import ParameterError, changed, check_running_notebook, run_name
from .section import open_section


def parameters(section: str) -> dict[str, Any]:
    """Check what the cell of parameters and papermill have set, show it as a table, and return name → value.

    To be called in the cell after the one tagged `parameters`. A banner says so where the page is not the published
    one. Raises `ParameterError` for an unknown name, a wrong type or a value out of range, with the list of what
    there is.
    """
    keep_freed_memory()  # the kernel is this page's alone
    shell = get_ipython()
    if shell is None:
        raise ParameterError("parameters() belongs into a notebook: it reads the notebook's cells")
    declared, values = check_running_notebook(section, shell.user_ns, shell.user_ns["In"])
    changes = changed(declared, values)
    open_section(section, run_name(section, changes), values, changes)
    rows = [{"name": f"`{p.name}`", "value": f"`{values[p.name]!r}`", "default": f"`{p.default!r}`", "meaning": p.help}
            for p in declared.values()]
    banner = None
    if changes:
        what = ", ".join(f"{name} = {value!r}" for name, value in changes.items())
        banner = (f"This is not the published page: it was made with {what}. Figures, tables and numbers are those of this run; "
                  "what the text says of them in words alone was written for the published page.")
    show_parameters(rows, banner)
    return values
