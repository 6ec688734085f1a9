"""What a cell of parameters declares, and what is refused before anything runs."""

import nbformat
import papermill
import pytest

from tnlib.publishing.jobs import Section, sections
from tnlib.publishing.parameters import (
    PROFILES, ParameterError, Types, check_running_notebook, changed, declared, parse_value, run_name, validate)

CELL = '''
profile: Profile = "published"  # what is computed
dataset: DatasetName = "cifar10"  # the images
rank: Rank = 8  # how many # values
spread: Spread = 1.0
'''


def test_a_cell_declares_names_types_defaults_and_help():
    found = declared(CELL)
    assert list(found) == ["profile", "dataset", "rank", "spread"]
    assert found["rank"].type == "Rank" and found["rank"].default == 8 and found["rank"].help == "how many # values"
    assert found["spread"].help == ""


def test_a_cell_that_declares_what_cannot_be_checked_is_named(tmp_path):
    with pytest.raises(ParameterError, match="mine: int: a parameter's type is one of Profile, .*Rank"):
        validate(declared(CELL + "mine: int = 3"), {}, "spectra")
    for source in ('profile: Profile = = "published"', "rank: Rank = few", "rank: Rank = (8"):
        cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]}, id="c0")
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
        with pytest.raises(ParameterError, match="n.ipynb: its cell of parameters cannot be read"):
            Section("n", tmp_path / "n.ipynb").parameters


def test_a_cell_of_parameters_that_failed_half_way():
    own, values = check_running_notebook("x", {"rank": 4}, ["rank: Rank = 8\nseed: Seed = 0"])
    assert list(own) == ["rank", "seed"] and values == {"rank": 4, "seed": 0}


@pytest.mark.parametrize("values, words", [
    ({"rnak": 3}, ["unknown parameter 'rnak'", "rank: Rank = 8"]),
    ({"rank": 0}, ["rank = 0", "greater than or equal to 1"]),
    ({"rank": "8"}, ["rank = '8'", "valid integer"]),
    ({"rank": 2.0}, ["rank = 2.0"]),
    ({"rank": True}, ["rank = True"]),
    ({"dataset": "cifar11"}, ["'cifar11'", "cifar10, cifar100, shapes"]),
    ({"dataset": "missing.npz"}, ["'missing.npz'", ".npz"]),
    ({"spread": -1.0}, ["spread = -1.0", "greater than 0"]),
    ({"profile": "quick"}, ["profile = 'quick'", "'published'"]),
    ({"profile": "shapes"}, ["profile 'shapes' goes with dataset = 'shapes'"]),
], ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_bad_values_are_refused_with_what_there_is(values, words):
    with pytest.raises(ParameterError) as error:
        validate(declared(CELL), values, "spectra")
    for word in words:
        assert word in str(error.value)
    assert "section 'spectra'" in str(error.value)


def test_good_values_come_back_whole():
    values = validate(declared(CELL), {"rank": 3, "spread": 2}, "spectra")
    assert values == {"profile": "published", "dataset": "cifar10", "rank": 3, "spread": 2.0}
    assert changed(declared(CELL), values) == {"rank": 3, "spread": 2.0}


@pytest.mark.parametrize("text, value", [("8", 8), ("0.5", 0.5), ("cifar100", "cifar100"), ("true", True),
                                         ("OUT,KW", "OUT,KW"), ("[1, 2]", [1, 2]), ("{", "{"),
                                         ("1e-1", 0.1), ("010", "010"), ("off", "off"), ('"0"', "0")])
def test_values_from_the_command_line(text, value):
    assert parse_value(text) == value and type(parse_value(text)) is type(value)


def test_run_names_are_file_names_and_differ():
    assert run_name("spectra", {}) == "spectra"
    assert run_name("spectra", {"rank": 3, "dataset": "cifar100"}) == "spectra-dataset=cifar100-rank=3"
    awkward = [run_name("spectra", {"name": value}) for value in ("a/b", "a b", "x" * 300, "x" * 301)]
    assert len(set(awkward)) == 4 and all("/" not in name and len(name) < 120 for name in awkward)


def test_a_running_notebook_catches_a_name_that_only_papermill_set():
    namespace = {"profile": "published", "dataset": "cifar10", "rank": 8, "spread": 1.0, "rnak": 3}
    with pytest.raises(ParameterError, match="unknown parameter 'rnak'"):
        check_running_notebook("spectra", namespace, ["import tnlib", CELL, "# Parameters\nrnak = 3\n", "nb.parameters()"])
    del namespace["rnak"]
    namespace["rank"] = 3
    own, values = check_running_notebook("spectra", namespace, ["%matplotlib inline", CELL, "# Parameters\nrank = 3\n"])
    assert values["rank"] == 3 and own["rank"].default == 8


def test_a_notebook_without_its_cell_of_parameters_says_so():
    with pytest.raises(ParameterError, match="has not been run yet"):
        check_running_notebook("spectra", {}, ["import tnlib", "x: int = 3"])


@pytest.mark.parametrize("section", sections().values(), ids=lambda section: section.name)
def test_every_notebook_of_the_book_declares_what_papermill_sees(section):
    """Papermill drops parameters with annotations that it cannot read: none of ours may be lost."""
    ours, theirs = section.parameters, papermill.inspect_notebook(str(section.path))
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert parameter.type in Types and parameter.help
        assert theirs[name]["inferred_type_name"] == parameter.type and theirs[name]["help"] == parameter.help
    assert validate(ours, {}, section.name)
    for preset in PROFILES.values():
        assert validate(ours, {k: v for k, v in preset.items() if k in ours}, section.name)


def test_a_default_is_checked_too():
    with pytest.raises(ParameterError, match="rank = .*greater than or equal to 1"):
        validate(declared("rank: Rank = 0  # how many values are kept"), {}, "spectra")
