"""The book's sections, as its table of contents names them."""

import pytest

from tnlib.publishing import jobs
from tnlib.publishing.parameters import ParameterError


@pytest.mark.parametrize("text", ["format: jb-book\nroot: [", "format: jb-book\nchapter: 1"])
def test_a_table_of_contents_that_cannot_be_read_is_named(tmp_path, monkeypatch, text):
    monkeypatch.setattr(jobs, "ROOT", tmp_path)
    (tmp_path / "_toc.yml").write_text(text)
    with pytest.raises(ParameterError, match=r"_toc\.yml cannot be read: "):
        jobs.sections()
