"""Imports go one direction: tensors ← experiments ← publishing ← cli; and `import tnlib` gives its interface only."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tnlib

PACKAGE = Path(tnlib.__file__).parent
ROOT = PACKAGE.parent
LAYERS = ("tensors", "experiments", "publishing", "cli")  # each may import those before it
TENSORS = {"torch", "tensorly", "numpy"}
THIRD_PARTY = {"tensors": TENSORS, "experiments": TENSORS | {"torchvision", "pandas", "scipy", "safetensors", "tqdm", "filelock"}}
INTERFACE = set("""
CUTS Cut singular_values truncate factorize relative_error norm_kept entanglement_entropy patches conv2d avg_pool2d
hosvd cp tensor_train tensor_ring separable depthwise_separable
Dataset load_dataset load_model conv_kernels train evaluate sweep truncation_sweep""".split())


def imported(source: str, package: str = "") -> set[str]:
    """Absolute names of the modules that `source`, which lies in `package`, imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[:len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join(above + ([node.module] if node.module else []))
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)} if module == "tnlib" else {module}
    return names


def height(name: str) -> int:
    """The place in LAYERS of a module of tnlib; what notebooks use, and tnlib itself, belong to publishing."""
    part = (name.split(".") + [""])[1]
    return LAYERS.index(part if part in LAYERS else "publishing")


SOURCES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
every_module = pytest.mark.parametrize("module", [name for name in sorted(SOURCES) if name != "__init__"])


def imports_of(module):
    return imported(SOURCES[module].read_text(encoding="utf-8"), ".".join(["tnlib", *module.split(".")[:-1]]))


def test_imports_are_read_off_the_source():
    source = ("import os.path, torch\nfrom ..tensors.cuts import Cut\nfrom . import files\n"
              "def f():\n    from scipy import stats\n    from tnlib.cli import main\n    from tnlib import notebook")
    assert imported(source, "tnlib.experiments") == {
        "os.path", "torch", "tnlib.tensors.cuts", "tnlib.experiments", "scipy", "tnlib.cli", "tnlib", "tnlib.notebook"}


@every_module
def test_nothing_imports_upward(module):
    inside = {name for name in imports_of(module) if name.split(".")[0] == "tnlib"}
    assert {name for name in inside if height(name) > height(f"tnlib.{module}")} == set()


@every_module
def test_third_party_packages_belong_to_their_layer(module):
    allowed = THIRD_PARTY.get(module.split(".")[0])
    outside = {name.split(".")[0] for name in imports_of(module)} - {"tnlib"} - sys.stdlib_module_names
    assert allowed is None or outside <= allowed


def test_import_tnlib_loads_nothing_for_pages():
    loaded = modules_after("from tnlib import *")
    assert {"tnlib.tensors.cuts", "torch"} <= loaded
    assert {"papermill", "matplotlib", "pydantic", "IPython", "sphinx", "tnlib.notebook", "tnlib.publishing"} & loaded == set()


@pytest.mark.parametrize("module", ["tnlib", "tnlib.cli", "tnlib.publishing.sphinx_extension"])
def test_what_needs_no_torch_does_not_wait_for_it(module):
    assert {"torch", "tensorly", "torchvision"} & modules_after(f"import {module}") == set()


def modules_after(code):
    """The modules that a fresh Python has loaded after `code`."""
    code = f"{code}\nimport sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


def test_the_interface_is_the_documented_one():
    assert set(tnlib.__all__) == set(dir(tnlib)) == INTERFACE and len(tnlib.__all__) == len(INTERFACE)
    assert [name for name in INTERFACE - {"CUTS"} if not getattr(tnlib, name).__doc__] == []
    stub = PACKAGE.joinpath("__init__.pyi").read_text(encoding="utf-8")
    (said,) = [node.value for node in ast.parse(stub).body if isinstance(node, ast.Assign)]
    assert set(ast.literal_eval(said)) == INTERFACE, "and that for which type checkers look"


@pytest.mark.parametrize("notebook", sorted((ROOT / "book").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_import_only_the_interface(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    ours = {name for name in imported(code) if name.split(".")[0] == "tnlib"}
    assert ours and ours <= {"tnlib", "tnlib.notebook", *(f"tnlib.{name}" for name in tnlib.__all__)}


def test_the_readme_lists_the_interface():
    rows = [line.split("|")[1] for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
            if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`(\w+)", row)}
    assert set(tnlib.__all__) <= listed
    for name in set(tnlib.__all__) - {"CUTS"}:
        assert len(getattr(tnlib, name).__doc__.split()) > 5
