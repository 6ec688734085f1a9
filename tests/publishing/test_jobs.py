"""The book's sections, as its table of contents names them."""

import pytest

from tnlib.publishing import jobs
from tnlib.publishing.jobs import section_values, sections
from tnlib.publishing.parameters import ParameterError


@pytest.mark.parametrize("text", ["format: jb-book\nroot: [", "format: jb-book\nchapter: 1"])
def test_a_table_of_contents_that_cannot_be_read_is_named(tmp_path, monkeypatch, text):
    monkeypatch.setattr(jobs, "ROOT", tmp_path)
    (tmp_path / "_toc.yml").write_text(text)
    with pytest.raises(ParameterError, match=r"_toc\.yml cannot be read: "):
        jobs.sections()


def test_the_data_set_that_it_would_be_compared_with_is_compared_with_the_published_one():
    spectra, formalism = sections()["spectra"], sections()["formalism"]
    default = {name: parameter.default for name, parameter in spectra.parameters.items()}
    values = section_values(spectra, "published", {"dataset": default["compare"]})
    assert (values["dataset"], values["compare"]) == (default["compare"], default["dataset"]) and default["compare"] != default["dataset"]
    assert section_values(spectra, "published", {"dataset": "cifar100", "compare": "cifar100"})["compare"] == "cifar100", "as it was asked for"
    assert section_values(spectra, "shapes", {})["compare"] == "shapes" and "compare" not in section_values(formalism, "published", {"dataset": "cifar100"})
