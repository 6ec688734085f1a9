"""Results under way: kept as they come, whatever happens in between."""

import multiprocessing
import os
import sqlite3
import time

import numpy as np
import pytest

from tnlib.experiments import store as store_module
from tnlib.experiments.store import Store, StoreError

BITS = np.arange(20) % 3 == 0


def test_cells_come_back_in_their_place_whatever_the_order_they_came_in(tmp_path):
    store = Store(tmp_path / "new" / "a.sqlite", {"what": "a"})
    for place in (2, 0, 1):
        store.add((f"cell {place}", place, {"rank": place, "norm_kept": 0.1 + place}, BITS, place / 3))
    again = Store(tmp_path / "new" / "a.sqlite", {"what": "a"})
    assert again.places().keys() == {"cell 0", "cell 1", "cell 2"}
    assert [(key, labels) for key, labels, _, _ in again.cells()] == [
        (f"cell {k}", {"rank": k, "norm_kept": 0.1 + k}) for k in range(3)]
    assert [loss for *_, loss in again.cells()] == [0, 1 / 3, 2 / 3]
    assert np.array_equal(np.unpackbits(again.cells()[1][2], count=20).astype(bool), BITS)


def test_what_is_there_stays(tmp_path):
    store = Store(tmp_path / "a.sqlite", {})
    store.add(("k", 0, {"first": True}, BITS, 1.0))
    store.add(("k", 0, {"first": False}, ~BITS, 2.0))
    assert [(labels, loss) for _, labels, _, loss in store.cells()] == [({"first": True}, 1.0)]


def test_what_is_found_on_part_of_the_images_is_had_again_on_the_same_images_until_the_cell_is_there(tmp_path):
    store, cells = Store(tmp_path / "a.sqlite", {}), [{"key": "a"}, {"key": "b"}, {"key": "c"}]
    correct, loss = np.random.default_rng(0).random((3, 13)) < 0.5, np.array([0.1, np.nan, 1e-9])
    store.add_parts(cells, slice(32, 45), correct, loss)
    again = Store(tmp_path / "a.sqlite", {})
    found = again.parts(cells, slice(32, 45))
    assert np.array_equal(found[0], correct) and np.array_equal(found[1], loss, equal_nan=True)
    found = again.parts(cells[:0:-1], slice(32, 45))
    assert np.array_equal(found[0], correct[:0:-1]) and np.array_equal(found[1], loss[:0:-1], equal_nan=True)
    others = [(cells, slice(0, 13)), (cells, slice(32, 44)), ([*cells, {"key": "d"}], slice(32, 45))]
    assert [again.parts(*other) for other in others] == [None] * 3 and not again.places()
    again.add(("a", 0, {}, BITS, 0.0))
    assert again.parts(cells, slice(32, 45)) is None
    assert np.array_equal(again.parts(cells[1:], slice(32, 45))[0], correct[1:]), "of a group half written the rest is not lost"


def test_a_loss_that_is_no_number_is_kept(tmp_path):
    store = Store(tmp_path / "a.sqlite", {})
    store.add(("k", 0, {}, BITS, float("nan")))
    ((key, _, _, loss),) = store.cells()
    assert key == "k" and np.isnan(loss)


def test_cells_are_kept_within_a_second_also_where_no_others_come(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "TOGETHER_SECONDS", 0.02)
    store, kept = Store(tmp_path / "a.sqlite", {}), []
    monkeypatch.setattr(Store, "add", lambda self, *cells, add=Store.add: (kept.append(len(cells)), add(self, *cells)))
    cell = lambda place: (f"cell {place}", place, {}, BITS, 0.0)
    with pytest.raises(KeyboardInterrupt), store.adding() as add:
        add(cell(0), cell(1))
        while len(store.places()) < 2:
            time.sleep(0.01)
        for place in range(2, 60):
            add(cell(place))
        raise KeyboardInterrupt
    assert len(store.places()) == sum(kept) == 60 and len(kept) < 40 and kept[0] == 2


def test_cells_that_cannot_be_kept_stop_what_finds_them(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "TOGETHER_SECONDS", 0.02)
    store = Store(tmp_path / "a.sqlite", {})

    def full(self, *cells):
        raise StoreError("the disk is full")

    monkeypatch.setattr(Store, "add", full)
    with pytest.raises(StoreError, match="the disk is full"), store.adding() as add:
        for place in range(10_000):
            add((f"cell {place}", place, {}, BITS, 0.0))
            time.sleep(0.005)
        pytest.fail("nobody noticed")


def test_another_measurement_is_refused(tmp_path):
    Store(tmp_path / "a.sqlite", {"weights": "x"}).add(("k", 0, {}, BITS, 1.0))
    with pytest.raises(StoreError, match='another measurement:\n  there: {"weights": "x"}\n  asked: {"weights": "y"}'):
        Store(tmp_path / "a.sqlite", {"weights": "y"})
    assert Store(tmp_path / "a.sqlite", {"weights": "x"}).places().keys() == {"k"}


def _add_many(path, start):
    store = Store(path, {})
    for k in range(start, start + 60):
        store.add((str(k), k, {"by": start}, BITS, 0.0))


def test_two_processes_at_once_lose_nothing(tmp_path):
    """Both write half of their rows under the same keys."""
    path = tmp_path / "a.sqlite"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_add_many, args=(path, start)) for start in (0, 30)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert Store(path, {}).places().keys() == {str(k) for k in range(90)}
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "a.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="a.sqlite is damaged .file is not a database.: move it away"):
        Store(tmp_path / "a.sqlite", {})


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="results cannot be kept in .*file/a.sqlite"):
        Store(tmp_path / "file" / "a.sqlite", {})


def test_what_belongs_together_is_kept_whole(tmp_path):
    store = Store(tmp_path / "a.sqlite", {})
    run = [(f"epoch {k}", k, {"training": 1}, BITS, 1.0) for k in range(3)]
    with pytest.raises(TypeError):
        store.add(*run, ("epoch 3", 3, {"training": {1}}, BITS, 1.0))  # no JSON
    assert not store.places()
    store.add(run[0])  # half a run, as if kept by a process that was stopped
    again = [(key, place, {"training": 2}, ~BITS, 2.0) for key, place, *_ in run]
    store.add(*again)
    assert [(labels["training"], loss) for _, labels, _, loss in store.cells()] == 3 * [(2, 2.0)]
    store.add(*run)  # another process, later
    assert [labels["training"] for _, labels, _, _ in store.cells()] == [2, 2, 2]


def test_a_full_disk_keeps_what_was_there(tmp_path, monkeypatch):
    """SQLite's own limit on a file's pages stands in for a full disk: the same error on the same path."""
    store = Store(tmp_path / "a.sqlite", {})
    store.add(("first", 0, {}, BITS, 1.0))
    connect = sqlite3.connect

    def small(*arguments, **options):
        database = connect(*arguments, **options)
        database.execute("PRAGMA max_page_count = 6")
        return database

    monkeypatch.setattr(sqlite3, "connect", small)
    with pytest.raises(StoreError, match="a.sqlite: database or disk is full.*is intact"):
        store.add(("second", 1, {"long": os.urandom(40_000).hex()}, BITS, 1.0))
    monkeypatch.undo()
    assert store.places().keys() == {"first"}


def test_what_comes_while_others_are_written_is_kept_too(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "TOGETHER_SECONDS", 0.02)
    store, cells = Store(tmp_path / "a.sqlite", {}), [(f"cell {place}", place, {}, BITS, 0.0) for place in range(3)]

    def slow(self, *given, add=Store.add):
        if cells:
            take(cells.pop())
        add(self, *given)

    monkeypatch.setattr(Store, "add", slow)
    with store.adding() as take:
        take(cells.pop())
        until = time.monotonic() + 10
        while len(store.places()) < 3 and time.monotonic() < until:
            time.sleep(0.01)
    assert len(store.places()) == 3
