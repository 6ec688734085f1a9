"""torchvision is importable whichever builds are installed; its operators are declared only where they do not load.

Each in a fresh interpreter: what torch has loaded and declared cannot be undone in this one.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tnlib.experiments import torchvision_compat

ROOT = Path(__file__).resolve().parents[2]


def python(code, *path):
    """What `code` prints in a fresh interpreter that finds packages in `path` first."""
    code = f"""
import importlib.util, sys
sys.path[:0] = {[*map(str, path), str(ROOT)]}
import torch
from tnlib.experiments import torchvision_compat as compat
{code}"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def package(tmp_path):
    """A torchvision that is nothing but its compiled operators: the file that is returned, not yet written."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").touch()
    return tmp_path / "torchvision" / "_C.so"


IMPORT = """
module = compat.import_torchvision()
assert compat.import_torchvision() is module
print(module.__file__)
print(compat._declared is not None, *(hasattr(torch.ops.torchvision, op) for op in ("nms", "qnms")))
"""


def test_the_installed_torchvision_works_and_is_declared_only_if_its_operators_do_not_load():
    loads, _, state, shape, names = python("""
try:
    torch.ops.load_library(importlib.util.find_spec("torchvision").submodule_search_locations[0] + "/_C.so")
    print(True)
except OSError:
    print(False)
""" + IMPORT + """
import torchvision
from torchvision import datasets, models, transforms
with torch.no_grad():
    print(*models.resnet18(weights=None, num_classes=7).eval()(torch.zeros(1, 3, 32, 32)).shape)
print(datasets.CIFAR10.__name__, transforms.ToTensor.__name__)
""")
    assert (shape, names) == ("1 7", "CIFAR10 ToTensor")
    assert state == {"True": "False True True", "False": "True True True"}[loads]


def test_nothing_is_declared_where_operators_load(package):
    shutil.copy(np.random.mtrand.__file__, package)  # any library that loads
    assert python(IMPORT, package.parents[1]) == [str(package.parent / "__init__.py"), "False False False"]


def test_nothing_is_declared_twice(package):
    package.write_bytes(b"built for another torch")
    theirs = "theirs = torch.library.Library('torchvision', 'DEF'); theirs.define('nms(Tensor dets) -> Tensor')"
    assert python(theirs + IMPORT, package.parents[1])[1] == "False True False"


def test_both_are_declared_where_operators_do_not_load(package):
    package.write_bytes(b"built for another torch")
    assert python(IMPORT, package.parents[1]) == [str(package.parent / "__init__.py"), "True True True"]


def test_a_missing_torchvision_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(torchvision_compat.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="torchvision is not installed: pip install -c constraints.txt"):
        torchvision_compat._operators_load()
