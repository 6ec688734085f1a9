"""Results under way: one SQLite file a measurement, so that a kill, a full disk or a second run loses nothing.

A row is a cell: its key, its place in the order of the table, its labels, and what was found. Those that are added
together, of a run of training or of a second of a sweep, are written in one transaction. A part is what a sweep has found
of a cell on some of the images; it goes when the cell is there.
"""

import json
import sqlite3
import sys
import threading
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .files import exclusive

WAIT_SECONDS = 60  # for another process that writes to the same file
TOGETHER_SECONDS = 1.0  # what is found within them is kept together: a disk takes as long for one cell as for a hundred


class StoreError(RuntimeError):
    """Results could not be kept or read; what was kept is intact."""


@contextmanager
def alone(kept: Path, say: bool):
    """No other process makes meanwhile what is kept at `kept`: of a run made twice, rows and last weights could be of two."""
    waits = lambda: say and tqdm.write(f"{kept.stem}: waits for another process that makes it", file=sys.stderr)
    with ExitStack() as stack:
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(kept.with_suffix(".lock"), waits))
        except OSError as error:
            raise StoreError(f"results cannot be kept in {kept.parent}: {error}. Is it a folder, and writable?") from None
        yield


class Store:
    """The cells of one measurement, at `path`. `identity`: what was measured, on what; another one is refused.

    Raises `StoreError` naming the file when it cannot be written, is damaged, or belongs to another measurement.
    """

    def __init__(self, path, identity: dict):
        self.path = Path(path)
        identity = json.dumps(identity, sort_keys=True)
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._connection() as database:
                database.execute("CREATE TABLE IF NOT EXISTS identity (one INTEGER PRIMARY KEY, content TEXT NOT NULL)")
                database.execute("CREATE TABLE IF NOT EXISTS cells (key TEXT PRIMARY KEY, place INTEGER NOT NULL, "
                                 "labels TEXT NOT NULL, correct BLOB NOT NULL, loss REAL)")  # a loss that is NaN is NULL
                database.execute("CREATE TABLE IF NOT EXISTS calls (number INTEGER PRIMARY KEY, content TEXT NOT NULL)")
                database.execute("CREATE TABLE IF NOT EXISTS parts (key TEXT, first INTEGER, last INTEGER, correct BLOB NOT NULL, "
                                 "loss REAL, PRIMARY KEY (key, first, last))")
                database.execute("INSERT OR IGNORE INTO identity VALUES (1, ?)", (identity,))
                (found,) = database.execute("SELECT content FROM identity").fetchone()
        if found != identity:
            raise StoreError(f"{self.path} holds results of another measurement:\n  there: {found}\n  asked: {identity}\n"
                             "Move it away to measure anew.")

    @staticmethod
    def begun(path) -> dict | None:
        """The identity of what is kept at `path`; None where nothing is, or nothing that can be read."""
        if not Path(path).is_file():
            return None
        try:
            with closing(sqlite3.connect(path, timeout=WAIT_SECONDS)) as database:
                return json.loads(database.execute("SELECT content FROM identity").fetchone()[0])
        except (sqlite3.DatabaseError, TypeError, ValueError):  # a `Store` of it says what is wrong
            return None

    def places(self) -> dict[str, int]:
        """The keys of the cells that are done, each with its place."""
        with self._errors(), self._connection() as database:
            return dict(database.execute("SELECT key, place FROM cells"))

    def add(self, *cells: tuple[str, int, dict, np.ndarray, float]) -> None:
        """Keep cells that belong together, all of them or none: (key, place, labels, correct, loss) each.

        `place` orders the table, `correct` is one bool an image. What is there already is left as it is, but for a part
        of what belongs together, which is replaced.
        """
        rows = [_row(*cell) for cell in cells]
        with self._errors(), self._connection() as database:
            database.execute("BEGIN IMMEDIATE")
            there = (database.execute("SELECT 1 FROM cells WHERE key = ?", row[:1]).fetchone() for row in rows)
            if not all(there):
                database.executemany("INSERT OR REPLACE INTO cells VALUES (?, ?, ?, ?, ?)", rows)
                database.executemany("DELETE FROM parts WHERE key = ?", [row[:1] for row in rows])

    def take_over(self, cells: list[tuple[str, int, dict, np.ndarray, float]], calls: list[dict]) -> None:
        """Keep cells that were found elsewhere, as `add` takes them, with what is noted of the calls that did; both or neither."""
        rows = [_row(*cell) for cell in cells]
        with self._errors(), self._connection() as database:
            database.execute("BEGIN IMMEDIATE")
            database.executemany("INSERT INTO cells VALUES (?, ?, ?, ?, ?)", rows)
            database.executemany("INSERT INTO calls (content) VALUES (?)", [(json.dumps(call),) for call in calls])

    def add_parts(self, cells: list[dict], images: slice, correct: np.ndarray, loss: np.ndarray) -> None:
        """Keep what was found of `cells`, each with its "key", on some of the images: `correct` [cells, images], `loss` [cells]."""
        with self._errors(), self._connection() as database:
            database.executemany("INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?)",
                                 [(cell["key"], images.start, images.stop, np.packbits(right).tobytes(), float(total))
                                  for cell, right, total in zip(cells, correct, loss)])

    def parts(self, cells: list[dict], images: slice) -> tuple[np.ndarray, np.ndarray] | None:
        """What was kept of these cells on these very images, as given to `add_parts`; None where one of them is missing."""
        with self._errors(), self._connection() as database:
            found = [database.execute("SELECT correct, loss FROM parts WHERE (key, first, last) = (?, ?, ?)",
                                      (cell["key"], images.start, images.stop)).fetchone() for cell in cells]
        if None in found:
            return None
        bits, loss = zip(*found)
        right = [np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=images.stop - images.start) for packed in bits]
        return np.array(right, dtype=bool), np.array([np.nan if total is None else total for total in loss])

    def begin(self, call: dict) -> int:
        """Note that a call has begun to add cells, and how; returns its number, for `end`."""
        with self._errors(), self._connection() as database:
            return database.execute("INSERT INTO calls (content) VALUES (?)", (json.dumps(call),)).lastrowid

    def end(self, number: int, **more) -> None:
        """Add to what is noted of a call; one that was killed never does."""
        with self._errors(), self._connection() as database:
            (content,) = database.execute("SELECT content FROM calls WHERE number = ?", (number,)).fetchone()
            database.execute("UPDATE calls SET content = ? WHERE number = ?", (json.dumps(json.loads(content) | more), number))

    def calls(self) -> list[dict]:
        """What is noted of the calls that added cells, in order."""
        with self._errors(), self._connection() as database:
            return [json.loads(content) for (content,) in database.execute("SELECT content FROM calls ORDER BY number")]

    def cells(self) -> list[tuple[str, dict, np.ndarray, float]]:
        """(key, labels, packed bits, loss) of all cells in the order of the table."""
        with self._errors(), self._connection() as database:
            rows = database.execute("SELECT key, labels, correct, loss FROM cells ORDER BY place, key").fetchall()
        return [(key, json.loads(labels), np.frombuffer(correct, dtype=np.uint8), np.nan if loss is None else loss)
                for key, labels, correct, loss in rows]

    @contextmanager
    def adding(self):
        """A function that takes cells as `add` does and returns at once: within `TOGETHER_SECONDS` they are kept, also where
        no others come, and all of them when the block is left. It raises the `StoreError` of those that could not be."""
        waiting, over, failed = [], threading.Event(), []

        def keep():
            if those := waiting[:]:
                self.add(*those)
                del waiting[:len(those)]  # and not before: adding them again does no harm

        def keep_again_and_again():
            try:
                while not over.wait(TOGETHER_SECONDS):
                    keep()
            except StoreError as error:
                failed.append(error)

        def take(*cells):
            if failed:
                raise failed[0]
            waiting.extend(cells)  # all at once: what belongs together is not parted

        thread = threading.Thread(target=keep_again_and_again, daemon=True)
        thread.start()
        try:
            yield take
        finally:
            over.set()
            thread.join()
            keep()

    @contextmanager
    def _connection(self):
        with closing(sqlite3.connect(self.path, timeout=WAIT_SECONDS)) as database:
            database.execute("PRAGMA synchronous = FULL")
            with database:  # one transaction, rolled back by an exception
                yield database

    @contextmanager
    def _errors(self):
        try:
            yield
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise self._not_kept(error) from None
            raise StoreError(f"{self.path} is damaged ({error}): move it away to measure anew") from None
        except OSError as error:
            raise self._not_kept(error) from None

    def _not_kept(self, error):
        return StoreError(f"results cannot be kept in {self.path}: {error}. Is the folder writable, is the disk full? "
                          "What was kept before is intact; the same command goes on from there.")


def _row(key, place, labels, correct, loss) -> tuple[str, int, str, bytes, float]:
    """A cell as the file has it."""
    return key, place, json.dumps(labels), np.packbits(correct).tobytes(), float(loss)
