"""Bad input to the commands: one message that names the thing, and a non-zero exit."""

import shutil

import pytest
from click.testing import CliRunner

from tnlib.cli import main
from tnlib.experiments import weights


def run(*words):
    result = CliRunner().invoke(main, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize("words, message", [
    (("run", "spectra", "-p", "rnak", "3"), "unknown parameter 'rnak'"),
    (("run", "spectra", "-p", "rank", "0"), "rank = 0: Input should be greater than or equal to 1"),
    (("run", "spectra", "-p", "rank", "eight"), "rank = 'eight'"),
    (("run", "spectra", "--profile", "shapes", "-p", "dataset", "cifar10"), "the profile 'shapes' goes with dataset = 'shapes'"),
    (("run", "spectre"), "unknown section 'spectre': it takes formalism, spectra"),
    (("build", "-p", "rnak", "3"), "no section has a parameter 'rnak'"),
    (("build", "--only", "spectre"), "unknown section 'spectre'"),
    (("train", "vanila", "shapes"), "unknown network 'vanila': it takes 'vanilla'"),
    (("train", "vanilla", "shape"), "unknown data set 'shape'"),
    (("train", "vanilla", "shapes", "--seed", "-1"), "-1"),
], ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_bad_input(words, message):
    result = run(*words)
    assert result.exit_code != 0 and message in result.output
    assert "Traceback" not in result.output and result.output.count("Error") == 1


def test_a_missing_data_set_names_the_three_places(no_data):
    result = run("train", "vanilla", "cifar10")
    assert result.exit_code == 1
    for word in ("--data", "TNLIB_DATA", "the cache", "tnlib data fetch cifar10"):
        assert word in result.output


def test_status_of_missing_data(no_data):
    result = run("data", "status")
    assert result.exit_code == 0 and "nowhere" in result.output and "TNLIB_DATA: not set" in result.output


@pytest.mark.cifar
def test_status_tells_which_copy():
    result = run("data", "status")
    assert result.exit_code == 0 and result.output.count("fingerprint") >= 2 and "nowhere" not in result.output


def test_a_corrupted_weight_file_is_named(tmp_path, monkeypatch):
    for name in ("vanilla-shapes-s0.safetensors", "vanilla-shapes-s0.json"):
        shutil.copy(weights.FOLDERS[0] / name, tmp_path / name)
    file = tmp_path / "vanilla-shapes-s0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    monkeypatch.setattr(weights, "FOLDERS", (tmp_path, tmp_path))
    with pytest.raises(ValueError, match=f"{file} is corrupt or was altered"):
        weights.load_model("vanilla", "shapes")


def test_the_interface_is_what_the_design_says():
    import subprocess
    import sys

    import tnlib
    assert all(hasattr(tnlib, name) for name in tnlib.__all__)
    code = "import sys, tnlib; print([m for m in ('tnlib.notebook', 'matplotlib', 'papermill', 'sphinx') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]", "import tnlib is for training and measuring too: it loads nothing for pages"
