"""The commands: where their results go, and, for bad input, one message that names the thing and a non-zero exit."""

import shutil
import types
from importlib.metadata import version

import pytest
from click.testing import CliRunner

from tnlib.cli import main
from tnlib.experiments import datapackage, datasets, files, measurements, training, verification, weights
from tnlib.experiments.files import PUBLISHED, ROOT, RUNS
from tnlib.publishing import building


def run(*words):
    result = CliRunner().invoke(main, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_a_package_that_is_not_there_is_named_without_a_traceback(monkeypatch):
    def missing(*given):
        raise ModuleNotFoundError("torchvision is not installed: pip install it")

    monkeypatch.setattr(datasets, "fetch", missing)
    result = run("data", "fetch")
    assert result.exit_code == 1 and result.output == "Error: torchvision is not installed: pip install it\n"


def test_it_says_its_version():
    assert run("--version").output == f"tnlib {version('tnlib')}\n"


@pytest.mark.parametrize("words, message", [
    (("run", "spectra", "-p", "rnak", "3"), "unknown parameter 'rnak'"),
    (("run", "spectra", "-p", "samples", "0"), "samples = 0: Input should be greater than or equal to 1"),
    (("run", "spectra", "-p", "share", "1"), "share = 1: Input should be less than 1"),
    (("run", "spectra", "-p", "share", "half"), "share = 'half'"),
    (("run", "spectra", "--profile", "shapes", "-p", "dataset", "cifar10"), "the profile 'shapes' goes with dataset = 'shapes'"),
    (("run", "spectra", "--profile", "shapes", "-p", "profile", "published"), "--profile shapes and -p profile published do not go together"),
    (("build", "--profile", "published", "-p", "profile", "shapes"), "--profile published and -p profile shapes do not go together"),
    (("run", "spectra", "-p", "seed", "1", "-p", "seed", "2"), "-p seed is given 2 times"),
    (("run", "spectre"), "unknown section 'spectre': it takes formalism, spectra"),
    (("build", "-p", "rnak", "3"), "no section has a parameter 'rnak'"),
    (("build", "--only", "spectre"), "unknown section 'spectre'"),
    (("train", "vanila", "shapes"), "unknown network 'vanila': it takes 'vanilla'"),
    (("measure", "shrink", "vanila", "cifar10"), "unknown network 'vanila': it takes 'vanilla'"),
    (("train", "vanilla", "shapes", "--seed", "99999999999999999999"), "is not in the range 0<=x<=2147483647"),
    (("train", "vanilla", "shape"), "unknown data set 'shape'"),
    (("train", "vanilla", "shapes", "--seed", "-1"), "-1"),
    (("train", "vanilla", "shapes", "--publish"), "vanilla-shapes-s0.safetensors is trained already: move it and its card elsewhere"),
], ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_bad_input(words, message):
    result = run(*words)
    assert result.exit_code != 0 and message in result.output
    assert "Traceback" not in result.output and result.output.count("Error") == 1


# ---- where results go --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("publish, folder", [((), RUNS), (("--publish",), PUBLISHED)], ids=["runs", "published"])
def test_only_with_publish_are_files_written_to_published(monkeypatch, publish, folder):
    asked = []
    monkeypatch.setattr(training, "train", lambda model, data, seed, folder: asked.append((model, data.name, seed, folder)))
    monkeypatch.setattr(weights, "read_card", lambda path: {"test_accuracy": 0.875})
    monkeypatch.setattr(measurements, "measure", lambda *arguments, **options: asked.append(arguments[4]))
    monkeypatch.setattr(datapackage, "describe_results", lambda folder: asked.append(f"described {folder}"))
    path = folder / "weights" / "vanilla-shapes-s3.safetensors"
    monkeypatch.setattr(weights, "find_weights", lambda *network: path)
    result = run("train", "vanilla", "shapes", "--seed", "3", *publish)
    assert result.exit_code == 0 and f"Weights: {path} (87.5 % of the test images are answered right)" in result.output
    assert run("measure", "shrink", "vanilla", "shapes", *publish).exit_code == 0
    assert asked[:2] == [("vanilla", "shapes", 3, folder / "weights"), folder / "results"]
    assert [what for what in asked[2:]] == ([f"described {PUBLISHED}"] if publish else [])


def test_whoever_makes_anew_what_is_published_is_told_beforehand_which_is_read(monkeypatch, tmp_path):
    def stopped(*arguments, **options):
        raise ValueError("stopped")

    monkeypatch.setattr(files, "RUNS", tmp_path)
    monkeypatch.setattr(training, "train", stopped)
    monkeypatch.setattr(measurements, "measure", stopped)
    result = run("train", "vanilla", "shapes")
    assert result.exit_code == 1 and f"is still loaded from {PUBLISHED / 'weights' / 'vanilla-shapes-s0.safetensors'}" in result.output
    table = PUBLISHED / "results" / "truncation-vanilla-cifar10-s0.csv"
    monkeypatch.setattr(datasets, "load_dataset", lambda name, folder: types.SimpleNamespace(name=name))
    assert f"the book still reads {table}" in run("measure", "truncation", "vanilla", "cifar10").output
    monkeypatch.setattr(datapackage, "describe_results", lambda folder: None)
    assert "still reads" not in run("measure", "truncation", "vanilla", "cifar10", "--publish").output
    assert "still loaded" not in run("train", "vanilla", "cifar10", "--seed", "7").output


def test_a_folder_without_the_right_to_write_is_named(monkeypatch):
    def refused(*arguments):
        raise PermissionError(13, "Permission denied", "/no/right/here.lock")

    monkeypatch.setattr(building, "run_section", refused)
    result = run("run", "spectra")
    assert result.exit_code == 1 and "Error: /no/right/here.lock cannot be written or read (Permission denied): give this user the right to" in result.output


def test_what_a_stopped_measurement_leaves_in_published_is_described(monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    described = []
    monkeypatch.setattr(measurements, "measure", stopped)
    monkeypatch.setattr(datapackage, "describe_results", described.append)
    assert run("measure", "shrink", "vanilla", "shapes", "--publish").exit_code == 1 and described == [PUBLISHED]
    assert run("measure", "shrink", "vanilla", "shapes").exit_code == 1 and described == [PUBLISHED]


@pytest.mark.parametrize("different, deviation, ends, again, code", [
    (0, 1e-7, 0, 0.80, 0), (9, 0, 0, 0.80, 1), (0, 1e-3, 0, 0.80, 1), (0, float("nan"), 0, 0.80, 1), (0, 0, 9, 0.80, 1), (0, 0, 0, 0.70, 1)],
    ids=["agrees", "bits", "numbers", "no-number", "paths", "re-training"])
def test_verify_fails_where_results_do_not_follow(monkeypatch, different, deviation, ends, again, code):
    monkeypatch.setattr(verification, "verify", lambda *_, **of: [verification.Check("table.csv", "key", 500, different, deviation)])
    monkeypatch.setattr(verification, "verify_paths", lambda **of: [verification.Check("paths.csv", "end", 500, ends)])
    monkeypatch.setattr(verification, "verify_retraining", lambda *_, **of: verification.Retrained("re.csv", "key", 0.80, again))
    monkeypatch.setattr(verification, "other_copies", lambda *_: [])
    result = run("verify")
    assert result.exit_code == code and f"{different} of 500 answers differ" in result.output
    assert any(words in result.output for words in ("do not follow", "does not follow", "do not lie")) == bool(code)


def test_verify_takes_the_network_that_is_named(monkeypatch):
    asked = []
    monkeypatch.setattr(verification, "verify", lambda *_, **of: asked.append(of) or [verification.Check("table.csv", "key", 500, 0)])
    monkeypatch.setattr(verification, "verify_paths", lambda **of: asked.append(of) or [])
    monkeypatch.setattr(verification, "verify_retraining", lambda *_, **of: asked.append(of))
    monkeypatch.setattr(verification, "other_copies", lambda *_: [])
    assert run("verify", "resnet50", "cifar10").exit_code == run("verify", "vanilla").exit_code == run("verify").exit_code == 0
    assert asked == [{"model": "resnet50", "dataset": "cifar10"}] * 3 + [{"model": "vanilla"}] * 3 + [{}] * 3


@pytest.mark.parametrize("words, published", [((), True), (("-p", "samples", "20"), False), (("--profile", "shapes"), False)],
                         ids=["published", "parameter", "profile"])
def test_only_the_published_book_is_built_over_the_published_one(monkeypatch, words, published):
    jobs, rendered = [], []
    monkeypatch.setattr(building, "run", lambda found, say: jobs.extend(found))
    monkeypatch.setattr(building, "stage_book", lambda found, folder: None)
    monkeypatch.setattr(building, "render", lambda stage, folder, say: rendered.append((stage, folder)))
    result = run("build", *words)
    (stage, folder), = rendered
    assert result.exit_code == 0 and ("not the published one" in result.output) != published
    assert len(jobs) > 5 and (folder == ROOT) == published and (ROOT / "_build" in stage.parents) == published
    assert all((ROOT / "_build" in job.folder.parents) == published and (RUNS in job.folder.parents) != published for job in jobs)
    asked = {job.section.name: job.values for job in jobs}["spectra"]
    assert (asked["samples"] == 20) == ("samples" in words) and (asked["profile"] == "shapes") == ("shapes" in words)


# ---- data --------------------------------------------------------------------------------------------------------

def test_a_missing_data_set_names_the_three_places(no_data):
    result = run("train", "vanilla", "cifar10")
    assert result.exit_code == 1
    for word in ("--data", "TNLIB_DATA", "the cache", "tnlib data fetch cifar10"):
        assert word in result.output


def test_status_of_missing_data(no_data):
    result = run("data", "status")
    assert result.exit_code == 0 and "nowhere" in result.output and "TNLIB_DATA: not set" in result.output


def test_status_shows_a_folder_as_it_is_called(no_data, tmp_path):
    (tmp_path / "[bold]my[" / "b] data").mkdir(parents=True)
    result = run("data", "status", "--data", f"{tmp_path}/[bold]my[/b] data")
    assert result.exit_code == 0 and f"{tmp_path}/[bold]my[/b] data" in result.output


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
