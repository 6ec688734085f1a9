"""Running notebooks: only what changed, several at once, and a failing cell that says where it failed."""

import datetime
import json
import platform
import threading
import time
from importlib.metadata import version
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import pytest

from tnlib.experiments.provenance import git_commit
from tnlib.publishing import building, running
from tnlib.publishing import section as section_module
from tnlib.publishing.jobs import Job, Section
from tnlib.publishing.running import NotebookError, held, outdated, run
from tnlib.publishing.site import SiteError, stage_book

PARAMETERS = "rank: Rank = 8  # a rank"


def notebook(path, *sources):
    cells = [nbformat.v4.new_code_cell(source, id=f"c{k}") for k, source in enumerate(sources)]
    cells[0].metadata["tags"] = ["parameters"]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    return Section(path.stem, path)


@pytest.fixture
def light(monkeypatch):
    """The stamps of the real project take a second; their own test looks at them."""
    monkeypatch.setattr(running, "_published", lambda: "same")


HEAD = f"from tnlib.notebook import Rank\n{PARAMETERS}"
VALUE = "from tnlib import notebook as nb\nnb.parameters('tiny')\nnb.value('double', 2 * rank)"


def test_a_notebook_runs_once_and_again_only_when_something_changed(tmp_path, light, monkeypatch):
    section = notebook(tmp_path / "tiny.ipynb", HEAD, VALUE)
    job, said = Job(section, {"rank": 5}, tmp_path / "out"), []
    run([job], said.append)
    assert building.glued_values(job.executed) == {"double": "10"}
    assert said[0] == "tiny: runs: never run to its end" and said[1].startswith("tiny: done after")

    run([job], said.append)
    assert said[2:] == ["tiny: up to date"]

    assert outdated(Job(section, {"rank": 6}, job.folder)) == ["its parameters changed"]
    monkeypatch.setattr(running, "_published", lambda: "other")
    assert outdated(job) == ["published/ changed"]
    monkeypatch.setattr(running, "_published", lambda: "same")
    monkeypatch.setattr(running, "RUNS", tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "vanilla-mine-s0.json").write_text("{}")
    assert outdated(job) == ["your networks or data changed"]
    for own in (running._own_files, running._own_results):
        assert own(Job(section, {"rank": 8}, job.folder)) == "", "the book's own pages do not look at them"
    (tmp_path / "weights" / "vanilla-mine-s0.json").unlink()
    assert outdated(job) == []
    monkeypatch.setattr(section_module, "RUNS", tmp_path)
    looked = "noise-vanilla-mine-s*.json"  # for them, and found none
    (job.folder / "asked.json").write_text(json.dumps({looked: section_module.own_results(looked)}))
    stamp = json.loads((job.folder / "stamp.json").read_text()) | {"your results": running._own_results(job, as_read=True)}
    (job.folder / "stamp.json").write_text(json.dumps(stamp))
    (tmp_path / "results").mkdir()
    for name, reasons in (("shrink-vanilla-mine-s0.json", []), ("noise-vanilla-mine-s1.json", ["your results changed"])):
        (tmp_path / "results" / name).write_text("{}")
        assert outdated(job) == reasons
    (tmp_path / "results" / "noise-vanilla-mine-s1.json").unlink()
    notebook(tmp_path / "tiny.ipynb", HEAD, VALUE + " ")
    assert outdated(job) == ["its text changed"]


def test_where_temporary_files_lie_deep_its_sockets_lie_elsewhere(tmp_path, light, monkeypatch):
    """The path of a socket may have about a hundred letters."""
    deep = tmp_path / ("scratch-of-a-batch-job-" * 5)
    deep.mkdir()
    monkeypatch.setattr(running.tempfile, "tempdir", str(deep))
    job = Job(notebook(tmp_path / "tiny.ipynb", HEAD, "print(rank)"), {"rank": 5}, tmp_path / "out")
    run([job], lambda words: None)
    assert job.has_run


def test_what_changes_while_a_notebook_runs_makes_it_run_again(tmp_path, light, monkeypatch):
    """Others measure what the page has looked for already, and the notebook itself is edited: the run ends well all the same."""
    monkeypatch.setattr(section_module, "RUNS", tmp_path)
    (tmp_path / "results").mkdir()
    look = ("from pathlib import Path\nfrom tnlib.publishing import section as module\n"
            f"module.RUNS = Path({str(tmp_path)!r})\nmodule.section.ask('noise-vanilla-mine-s*.json')")
    others = (f"(Path({str(tmp_path)!r}) / 'results' / 'noise-vanilla-mine-s0.json').write_text('1')\n"
              f"own = Path({str(tmp_path / 'tiny.ipynb')!r})\nown.write_text(own.read_text().replace('rank: Rank', 'rang: Rank'))")
    job = Job(notebook(tmp_path / "tiny.ipynb", HEAD, VALUE, look, others), {"rank": 5}, tmp_path / "out")
    run([job], lambda words: None)
    assert job.has_run and job.record["changed"] == {"rank": 5}
    assert outdated(job) == ["its text changed", "your results changed"]


def test_on_one_core_they_run_one_after_another_in_this_process(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(running.os, "sched_getaffinity", lambda process: {0}, raising=False)
    monkeypatch.setattr(running, "ProcessPoolExecutor", None)
    monkeypatch.setattr(running, "_execute", lambda job, stamp, position, threads: (ran.append((job, threads)), (None, 1.0))[1])
    monkeypatch.setattr(running, "_stamp", lambda job: {})
    jobs = [Job(Section(name, tmp_path / f"{name}.ipynb"), {}, tmp_path / name) for name in "ab"]
    run(jobs, lambda words: None)
    assert [job for job, _ in ran] == jobs and all(threads >= 1 for _, threads in ran)


def test_a_page_is_stale_when_the_library_what_is_published_or_a_package_changes(tmp_path, monkeypatch):
    for name in ("ROOT", "PUBLISHED"):
        monkeypatch.setattr(running, name, tmp_path / name)
    job = Job(notebook(tmp_path / "tiny.ipynb", HEAD, VALUE), {"rank": 8}, tmp_path / "out")
    (tmp_path / "ROOT" / "tnlib").mkdir(parents=True), (tmp_path / "PUBLISHED").mkdir(), job.folder.mkdir()
    installed = [SimpleNamespace(name="torch", version="1", metadata={"Name": "torch"})]
    monkeypatch.setattr(running, "distributions", lambda: installed)

    def stale():
        """What has changed since this was last asked."""
        running._published.cache_clear(), running._packages.cache_clear()
        found = outdated(job)
        (job.folder / "stamp.json").write_text(json.dumps(running._stamp(job)))
        return found

    try:
        assert stale() == ["never run to its end"] and stale() == []
        (tmp_path / "ROOT" / "tnlib" / "x.py").write_text("1")
        assert stale() == ["tnlib changed"] and stale() == []
        (tmp_path / "ROOT" / "book").mkdir(), (tmp_path / "ROOT" / "book" / "claims.yml").write_text("1")
        assert stale() == ["its text changed"] and stale() == []
        (tmp_path / "ROOT" / "CITATION.cff").write_text("1")  # its authors are in what a page says of how to cite it
        assert stale() == ["its text changed"] and stale() == []
        (tmp_path / "ROOT" / "tnlib" / "x.mplstyle").write_text("1")
        assert stale() == ["tnlib changed"] and stale() == []
        (tmp_path / "PUBLISHED" / "a.csv").write_text("1")
        assert stale() == ["published/ changed"] and stale() == []
        installed[0] = SimpleNamespace(name="torch", version="2", metadata={"Name": "torch"})
        assert stale() == ["installed packages changed"] and stale() == []
    finally:
        running._published.cache_clear(), running._packages.cache_clear()


def test_a_run_leaves_a_record_of_how_it_ran(tmp_path, light, monkeypatch):
    monkeypatch.setattr(running.torch, "get_num_threads", lambda: 2)  # as many as torch takes, and not those that only spin
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    threads = "\nimport os; nb.value('threads', int(os.environ['OMP_NUM_THREADS'])); nb.value('wait', os.environ['OMP_WAIT_POLICY'])"
    job = Job(notebook(tmp_path / "tiny.ipynb", HEAD, VALUE + threads), {"rank": 5}, tmp_path / "out")
    assert not job.has_run
    begun = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    run([job], lambda words: None)
    record = job.record
    assert job.has_run and json.loads((job.folder / "run.json").read_text()) == record
    assert record["parameters"] == record["changed"] == {"rank": 5}
    assert begun <= datetime.datetime.fromisoformat(record["started"]) <= begun + datetime.timedelta(seconds=60)
    values = building.glued_values(job.executed)
    assert 0 < record["seconds"] < 60 and record["threads"] == int(values["threads"]) == 2 and "passive" in values["wait"]
    assert record["versions"]["python"] == platform.python_version()
    assert all(record["versions"][package] == version(package) for package in ("torch", "numpy", "papermill", "jupyter-book"))
    assert record["git_commit"] == git_commit() and record["device"] and record["platform"]

    run([Job(job.section, {"rank": 8}, job.folder)], lambda words: None)
    assert job.record["parameters"] == {"rank": 8} and job.record["changed"] == {}


def test_a_failing_cell_names_notebook_cell_and_error_and_leaves_the_notebook(tmp_path, light, monkeypatch):
    monkeypatch.setattr(running.os, "sched_getaffinity", lambda process: {0}, raising=False)  # in this process: no other has to import all
    good = Job(notebook(tmp_path / "good.ipynb", HEAD, VALUE), {"rank": 2}, tmp_path / "good")
    bad = Job(notebook(tmp_path / "bad.ipynb", HEAD, VALUE, "x = 1\nraise ValueError('no such rank')"), {"rank": 2},
              tmp_path / "bad")
    with pytest.raises(NotebookError) as error:
        run([bad, good], lambda words: None)
    for word in ("bad.ipynb stopped at cell 3 (x = 1 …)", "ValueError: no such rank", str(bad.stopped)):
        assert word in str(error.value)
    assert "Traceback" not in str(error.value) and "good.ipynb" not in str(error.value)
    assert building.glued_values(bad.stopped) == {"double": "4"}, "what ran before the error is kept"
    assert outdated(bad) == ["never run to its end"] and not bad.has_run
    assert outdated(good) == [], "the other notebook ended well"
    before = good.executed.read_bytes()
    notebook(good.section.path, HEAD, VALUE, "raise ValueError('no longer')")
    with pytest.raises(NotebookError, match="good.ipynb stopped at cell 3"):
        run([good], lambda words: None)
    assert good.has_run and good.executed.read_bytes() == before and outdated(good) == ["its text changed"], "the last good run stays"
    assert not list(tmp_path.glob(".*")), "nothing is left over"


def test_a_run_in_jupyter_takes_the_place_of_what_a_command_made(tmp_path, monkeypatch):
    monkeypatch.setattr(section_module, "RUNS", tmp_path)
    monkeypatch.setattr(section_module, "section", section_module.OpenSection())
    (tmp_path / "tiny-rank=5").mkdir()
    stamp = tmp_path / "tiny-rank=5" / "stamp.json"
    for variable, there in ((str(tmp_path / "elsewhere"), True), (None, False)):
        stamp.write_text("{}")
        monkeypatch.setenv("TNLIB_OUTPUT", variable) if variable else monkeypatch.delenv("TNLIB_OUTPUT")
        with plt.rc_context():
            section_module.open_section("tiny", "tiny-rank=5", {"rank": 5}, {"rank": 5})
        assert stamp.exists() == there and not section_module.section.of_the_book


def test_an_unknown_name_given_to_plain_papermill_stops_the_notebook(tmp_path, light):
    job = Job(notebook(tmp_path / "tiny.ipynb", HEAD, VALUE), {"rnak": 2}, tmp_path / "out")
    with pytest.raises(NotebookError, match="unknown parameter 'rnak'"):
        run([job], lambda words: None)


def test_the_same_label_in_two_notebooks_is_refused(tmp_path):
    jobs = []
    for name in ("one", "two"):
        folder = tmp_path / name
        (folder / "figures").mkdir(parents=True)
        (folder / "figures" / "a-line.csv").write_text("x\n1\n")
        path = notebook(tmp_path / f"{name}.ipynb", HEAD).path
        (folder / path.name).write_text(path.read_text())
        jobs.append(Job(Section(name, path), {}, folder))
    with pytest.raises(SiteError, match="'a-line' is made twice: in one and in two"):
        stage_book(jobs, tmp_path / "stage")


def test_two_figures_in_one_cell_are_refused(tmp_path, light):
    output = nbformat.v4.new_output("display_data", {"text/plain": "x"}, metadata={"tnlib": {"id": "a"}})
    cell = nbformat.v4.new_code_cell("", outputs=[output, output], id="c0")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
    with pytest.raises(NotebookError, match="one cell makes 2 figures"):
        running._label_figures(tmp_path / "n.ipynb")
    show = "from IPython.display import display\nfor _ in range(2):\n    display({'text/plain': 'x'}, raw=True, metadata={'tnlib': {'id': 'a'}})"
    job = Job(notebook(tmp_path / "two.ipynb", HEAD, VALUE, show), {"rank": 5}, tmp_path / "two")
    with pytest.raises(NotebookError, match="(?s)one cell makes 2 figures.*stopped-two.ipynb"):
        run([job], lambda words: None)
    assert job.stopped.is_file() and not job.has_run


def test_a_second_process_waits_and_what_a_killed_run_left_is_cleared(tmp_path, light):
    job = Job(notebook(tmp_path / "tiny.ipynb", HEAD, VALUE), {"rank": 5}, tmp_path / "out")
    said, order = [], []

    def second():
        with held([job], said.append):
            order.append("second")

    with held([job], said.append):
        assert not said
        waiting = threading.Thread(target=second)
        waiting.start()
        while not said:
            time.sleep(0.01)
        order.append("first")
    waiting.join(30)
    assert order == ["first", "second"] and said == [f"tiny: waits for another process that is at work in {job.folder}"]

    (tmp_path / ".out.running" / "out").mkdir(parents=True)                     # as SIGKILL leaves it
    with held([job], said.append):
        run([job], said.append)
    assert outdated(job) == [] and not (tmp_path / ".out.running").exists()
    (tmp_path / ".out.running").mkdir()
    job.folder.rename(tmp_path / ".out.running" / "before")                     # … at the worst moment
    notebook(tmp_path / "tiny.ipynb", HEAD, "raise ValueError('not this time')")
    with pytest.raises(NotebookError):
        run([job], said.append)
    assert job.has_run and building.glued_values(job.executed) == {"double": "10"}


def test_a_page_of_your_own_images_is_stale_when_they_change(tmp_path, light, monkeypatch):
    monkeypatch.setattr(running, "RUNS", tmp_path)
    images = tmp_path / "mine.npz"
    images.write_text("1")
    job = Job(notebook(tmp_path / "tiny.ipynb", HEAD), {"rank": 5, "dataset": str(images)}, tmp_path / "out")
    job.folder.mkdir()
    (job.folder / "stamp.json").write_text(json.dumps(running._stamp(job)))
    assert outdated(job) == []
    images.write_text("2")
    assert outdated(job) == ["your networks or data changed"]


def test_notebooks_that_run_at_once_share_the_cores_and_all_that_failed_are_named(tmp_path, monkeypatch):
    asked = []

    class Pool:
        def __init__(self, workers, mp_context):
            asked.append(workers)

        __enter__, __exit__ = lambda self: self, lambda self, *_: None

        def submit(self, work, job, stamp, position, threads):
            asked.append(threads)
            return SimpleNamespace(result=lambda: (f"{job.section.name} stopped" if job.section.name != "b" else None, 1.0))

    monkeypatch.setattr(running.os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(running.torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(running, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(running, "_stamp", lambda job: {"its text": "1"})
    with pytest.raises(NotebookError, match="^a stopped\nc stopped$"):
        run([Job(Section(name, tmp_path / f"{name}.ipynb"), {}, tmp_path / name) for name in "abc"], lambda words: None)
    assert asked == [2, 4, 4, 4], "two at once, on half of the threads each"


def test_a_kernel_that_dies_is_named_and_the_notebook_kept(tmp_path, light):
    job = Job(notebook(tmp_path / "tiny.ipynb", HEAD, "import os\nos._exit(1)"), {"rank": 5}, tmp_path / "out")
    with pytest.raises(NotebookError, match="(?s)tiny.ipynb: its kernel died .*stopped-tiny.ipynb"):
        run([job], lambda words: None)
    assert job.stopped.is_file() and not job.has_run


def test_the_environment_is_as_it_was_after_a_run(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("TNLIB_OUTPUT", raising=False)
    with running._environment({"OMP_NUM_THREADS": "2", "TNLIB_OUTPUT": "x"}):
        assert running.os.environ["OMP_NUM_THREADS"] == "2" and running.os.environ["TNLIB_OUTPUT"] == "x"
    assert running.os.environ["OMP_NUM_THREADS"] == "7" and "TNLIB_OUTPUT" not in running.os.environ


def test_jupyter_book_is_told_label_caption_and_alternative_text_and_to_leave_out_what_papermill_added(tmp_path):
    output = nbformat.v4.new_output("display_data", {"text/plain": "x"}, metadata={"tnlib": {"id": "a-line", "caption": "What.", "alt": "Seen."}})
    cells = [nbformat.v4.new_code_cell("rank = 5", metadata={"tags": ["injected-parameters"]}), nbformat.v4.new_code_cell("", outputs=[output])]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path := tmp_path / "n.ipynb")
    running._label_figures(path)
    added, drawn = nbformat.read(path, as_version=4).cells
    assert added.metadata["tags"] == ["injected-parameters", "remove-cell"]
    assert drawn.metadata["mystnb"] == {"figure": {"name": "a-line", "caption": "What."}, "image": {"alt": "Seen."}}


def test_tables_that_were_renamed_are_other_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(section_module, "RUNS", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "noise-vanilla-mine-s0.json").write_text("{}")
    before = section_module.own_results("noise-*.json")
    (tmp_path / "results" / "noise-vanilla-mine-s0.json").rename(tmp_path / "results" / "noise-vanilla-mine-s1.json")
    assert section_module.own_results("noise-*.json") != before


def test_what_a_page_has_measured_itself_does_not_make_it_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(section_module, "RUNS", tmp_path)
    monkeypatch.setenv("TNLIB_OUTPUT", str(tmp_path))
    page, pattern = section_module.OpenSection(folder=tmp_path), "noise-*.json"
    page.ask(pattern)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "noise-vanilla-mine-s0.json").write_text("{}")
    page.ask(pattern)
    assert json.loads((tmp_path / "asked.json").read_text()) == {pattern: section_module.own_results(pattern)}
