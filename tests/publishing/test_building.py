"""What `tnlib build` and `tnlib run` do with notebooks that were run: which of them, and how numbers are compared."""

import contextlib

import nbformat
import pytest

from tnlib.publishing import building
from tnlib.publishing.building import build_book, run_section
from tnlib.publishing.jobs import Section, sections
from tnlib.publishing.parameters import ParameterError


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Two sections with a parameter `rank`, whose text has twice the rank and a constant. Returns what was run, as
    (section, rank)."""
    book, ran = {}, []
    for name in ("tiny", "other"):
        cell = nbformat.v4.new_code_cell("rank: Rank = 8  # a rank", metadata={"tags": ["parameters"]})
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path := tmp_path / f"{name}.ipynb")
        book[name] = Section(name, path)

    def run(jobs, say):
        for job in jobs:
            ran.append((job.section.name, job.values["rank"]))
            outputs = [nbformat.v4.new_output("display_data", {"application/papermill.record/text/plain": text}, metadata={
                "scrapbook": {"name": f"application/papermill.record/{glued}"}})
                for glued, text in (("double", str(2.0 * job.values["rank"])), ("layers", "4"))]
            job.folder.mkdir(parents=True, exist_ok=True)
            nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=outputs)]), job.executed)
            for name in ("run.json", "stamp.json"):
                (job.folder / name).write_text("{}")

    for name, value in {"sections": lambda: book, "find_section": book.__getitem__, "run": run, "BUILD": tmp_path / "build",
                        "EXECUTED": tmp_path / "build" / "executed", "RUNS": tmp_path / "runs", "outdated": lambda job: [],
                        "stage_book": lambda jobs, folder: None, "stage_page": lambda job, folder: None,
                        "render": lambda stage, folder, say: folder / "index.html"}.items():
        monkeypatch.setattr(building, name, value)
    return ran


def test_a_run_is_compared_with_the_published_page_number_by_number(ran, tmp_path, capsys):
    build_book("published")
    run_section("tiny", {"rank": 6})
    assert ran == [("tiny", 8), ("other", 8), ("tiny", 6)]
    said = capsys.readouterr().out
    (row,) = [line for line in said.splitlines() if "double" in line]
    assert [word for word in row.split() if word.isdigit()] == ["16", "12"]
    assert "layers" not in said, "it is as published"
    assert f"The page: {tmp_path / 'runs' / 'tiny-rank=6' / 'site'}" in said
    assert building.glued_values(tmp_path / "build" / "executed" / "tiny" / "tiny.ipynb") == {"double": "16.0", "layers": "4"}


def test_a_run_with_the_published_parameters_has_the_published_numbers(ran, capsys):
    build_book("published")
    run_section("tiny", {})
    assert "Every number in the text is as published." in capsys.readouterr().out


def test_a_run_says_when_there_is_nothing_to_compare_with_or_an_old_page(ran, capsys, monkeypatch):
    run_section("tiny", {"rank": 6})
    assert "The published page is not built yet (tnlib build): nothing to compare with." in capsys.readouterr().out
    build_book("published")
    monkeypatch.setattr(building, "outdated", lambda job: ["its text changed", "published/ changed"])
    run_section("tiny", {"rank": 6})
    said = capsys.readouterr().out
    assert "The published page was built before this: its text changed, published/ changed." in said and "double" in said


def test_only_the_sections_that_are_named_and_those_that_never_ran_are_brought_up_to_date(ran):
    build_book("published", only=["other"])
    assert ran == [("tiny", 8), ("other", 8)], "the book has to have every page"
    del ran[:]
    build_book("published", only=["other"])
    assert ran == [("other", 8)]


def test_chapters_that_take_longest_begin_first(ran, monkeypatch):
    monkeypatch.setattr(building, "FIRST", ("other",))
    build_book("published")
    assert ran == [("other", 8), ("tiny", 8)]


def test_chapters_that_measure_for_others_begin_first(ran, monkeypatch):
    monkeypatch.setattr(building, "FIRST_TO_MEASURE", ("other",))
    build_book("published", given={"rank": 6})
    assert ran == [("other", 6), ("tiny", 6)]


def test_chapters_that_begin_first_are_there():
    assert {*building.FIRST, *building.FIRST_TO_MEASURE} <= set(sections()), "a chapter that was renamed"


def test_a_profile_given_twice_is_refused(ran):
    with pytest.raises(ParameterError, match="--profile full and -p profile shapes do not go together"):
        build_book("full", given={"profile": "shapes"})
    assert not ran


def test_numbers_that_differ_are_shown_so():
    for ours, theirs in (("45313", "45312"), ("0.83414", "0.83412")):
        assert building._short(ours) != building._short(theirs)


def test_a_parameter_that_no_section_has_is_refused_with_those_that_there_are(ran):
    with pytest.raises(ParameterError, match="no section has a parameter 'rnak'. There are:\n  tiny: rank\n  other: rank"):
        build_book("published", given={"rnak": 3})
    assert not ran


@pytest.mark.parametrize("work, names", [(lambda: build_book("published"), ["tiny", "other"]), (lambda: run_section("tiny", {"rank": 6}), ["tiny"])],
                         ids=["build", "run"])
def test_from_running_to_rendering_no_other_process_works_at_the_same_pages(ran, monkeypatch, work, names):
    inside, rendered, render = [], [], building.render

    @contextlib.contextmanager
    def held(jobs, say):
        inside[:] = [job.section.name for job in jobs]
        yield
        inside.clear()

    monkeypatch.setattr(building, "held", held)
    monkeypatch.setattr(building, "render", lambda *arguments: (rendered.append(list(inside)), render(*arguments))[1])
    work()
    assert rendered == [names]


def test_whether_the_published_page_is_old_is_asked_with_the_published_parameters(ran, monkeypatch):
    build_book("published")
    asked = []
    monkeypatch.setattr(building, "outdated", lambda job: asked.append((job.values["rank"], job.folder)) or [])
    run_section("tiny", {"rank": 6})
    assert asked == [(8, building.EXECUTED / "tiny")]


def test_numbers_that_one_page_alone_has_are_shown_and_in_brackets_too(ran, monkeypatch, capsys):
    build_book("published")
    there = {"ours": {"new": "[bold]1", "same": "4"}, "theirs": {"old": "[2, 3]", "same": "4"}}
    monkeypatch.setattr(building, "glued_values", lambda path: there["theirs" if building.EXECUTED in path.parents else "ours"])
    run_section("tiny", {"rank": 6})
    said = capsys.readouterr().out
    assert "[bold]1" in said and "[2, 3]" in said and said.count("–") == 2 and "same" not in said


def test_a_day_of_work_is_announced_and_nothing_else(ran, monkeypatch, capsys):
    for profile, announced in (("published", False), ("full", True)):
        monkeypatch.setattr(building, "section_values", lambda section, profile, given: {"rank": 8} | (
            {"profile": profile} if section.name == "tiny" else {}))
        for work in (lambda: build_book(profile), lambda: run_section("tiny", {}, profile)):
            work()
            assert ("days on a CPU" in capsys.readouterr().out) == announced
