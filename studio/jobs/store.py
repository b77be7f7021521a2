"""Jobs and pictures in SQLite (`studio.sqlite` in the home), so that they outlive browser tabs and servers.

The database uses a write-ahead log. One connection writes and another one reads, each under a lock. Every search has a
connection of its own, so that a slow one holds up nobody. `PRAGMA user_version` counts the migrations that have run.

What the machine keeps from being read or written is raised as MachineFault. A row that cannot be read is given with its
`fault`, and harms no other.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.errors import RequestError, SetupError, StudioError
from pipelines.home.files import whole_text
from pipelines.home.plain import read_json, reading, short
from studio.jobs.job import Job, JobState, PictureRow, Tally
from studio.library.search import words_of
from studio.rendering.machine import machine_fault, machine_faults

MOST_DEATHS = 3
"""A picture fails once the studio has died so often while it alone was in the making."""
MOST_LOADS = 5
"""Pictures that wait for a model fail once the studio has died so often while it was being loaded."""
MOST_REASONS = 20
"""Most reasons for failed pictures that a job's error lists."""
PATIENCE = 2.0
"""Seconds for which a writer waits while another program has locked the database."""
AT_ONCE = 100
"""Pictures that are read at a time where all of a job's are needed."""
LONGEST_SEARCHING = 10.0
"""Seconds after which a search is given up."""
LOOK_AT_THE_CLOCK = 10_000
"""Steps of SQLite's virtual machine between two looks at the clock."""

MIGRATIONS = (
    """
    CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, kind TEXT NOT NULL,
        title TEXT NOT NULL, model TEXT NOT NULL, vae TEXT, settings TEXT NOT NULL, state TEXT NOT NULL,
        error TEXT NOT NULL DEFAULT '', attempts INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL, began REAL,
        ended REAL
    );
    CREATE INDEX jobs_of_owner ON jobs (owner, seq);
    CREATE TABLE pictures (
        job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, place INTEGER NOT NULL, label TEXT NOT NULL,
        draft TEXT NOT NULL, state TEXT NOT NULL, error TEXT NOT NULL DEFAULT '', file TEXT, record TEXT, ended REAL,
        PRIMARY KEY (job, place)
    );
    CREATE INDEX pictures_by_end ON pictures (ended);
    CREATE INDEX pictures_by_file ON pictures (file);
    """,
    """
    ALTER TABLE pictures ADD COLUMN at_work INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE pictures ADD COLUMN suspect INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE pictures ADD COLUMN deaths INTEGER NOT NULL DEFAULT 0;
    UPDATE pictures SET at_work = 1 WHERE state = 'running';
    CREATE TABLE loading (
        model TEXT NOT NULL, vae TEXT NOT NULL, at_work INTEGER NOT NULL DEFAULT 0, deaths INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (model, vae)
    );
    """,
    """
    ALTER TABLE pictures ADD COLUMN steps INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE pictures ADD COLUMN unet_rows INTEGER NOT NULL DEFAULT 0;
    UPDATE pictures SET steps = steps_in(record), unet_rows = rows_in(record) WHERE record IS NOT NULL;
    CREATE INDEX pictures_counted ON pictures (job, state, place, steps, unet_rows);
    """,
)
"""Each migration takes the database one version further. Never change one; append another."""

_JOB = "seq, id, owner, kind, title, model, vae, settings, state, error, attempts, created, began, ended"
_PICTURE = "job, place, label, draft, state, error, file, record, ended, suspect, deaths, steps"
_BRIEFLY = _PICTURE.replace("record", "NULL")
_NOT_OVER = f"state IN ('{JobState.QUEUED}', '{JobState.RUNNING}')"


@dataclass(frozen=True)
class NewPicture:
    """A picture to be stored: its label, and its draft as JSON can hold it."""

    label: str
    draft: Mapping[str, Any]


class Store:
    """The database. Safe for several threads. Raises SetupError for a file that cannot be used."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.RLock()
        self._reader_lock = threading.Lock()
        try:
            self._database = self._writer()
            self._database.execute("PRAGMA journal_mode = WAL")
            self._migrate(file)
            self._reader = self._reading()
        except sqlite3.Error as error:
            fault = machine_fault(error)
            if fault is not None and type(error) is sqlite3.OperationalError:
                raise fault from error
            raise SetupError(
                f"{file} cannot be used ({error}); move it away, or give another --home"
            ) from error

    def _connected(self) -> sqlite3.Connection:
        database = sqlite3.connect(
            self._file, timeout=PATIENCE, check_same_thread=False, isolation_level=None
        )
        database.text_factory = _text
        return database

    def _writer(self) -> sqlite3.Connection:
        database = self._connected()
        database.execute("PRAGMA foreign_keys = ON")
        return database

    def _migrate(self, file: Path) -> None:
        [version] = self._database.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise SetupError(
                f"{file} was written by a newer LoRA Studio; update with pip install -U lora-studio"
            )
        for place, name in enumerate(("steps_in", "rows_in")):
            self._database.create_function(name, 1, lambda record, place=place: _stored_costs(record)[place])
        for number, statements in enumerate(MIGRATIONS[version:], version + 1):
            self._database.executescript(f"BEGIN; {statements}; PRAGMA user_version = {number}; COMMIT;")

    def close(self) -> None:
        with self._reader_lock:
            self._reader.close()
        with self._lock:
            self._database.close()

    def _reading(self) -> sqlite3.Connection:
        """A connection that only reads, and never waits for a writer."""
        database = self._connected()
        database.execute("PRAGMA query_only = ON")
        return database

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """While the block runs, a transaction: all its changes are kept, or none. Raises MachineFault."""
        with self._lock, machine_faults():
            self._leave_transaction()
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                self._leave_transaction()
                raise

    def _leave_transaction(self) -> None:
        """Ends a transaction that an error has left open. Where that fails too, a new connection is made: closing the
        old one undoes its changes."""
        if not self._database.in_transaction:
            return
        try:
            self._database.execute("ROLLBACK")
        except sqlite3.Error:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = self._writer()

    def probe(self) -> None:
        """Writes something and takes it away again. Raises MachineFault where the database cannot be written."""
        with self._writing() as database:
            database.execute("INSERT OR REPLACE INTO loading (model, vae) VALUES ('', '')")
            database.execute("DELETE FROM loading WHERE model = '' AND vae = ''")

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._reader_lock, machine_faults():
            return self._reader.execute(query, values).fetchall()

    # -- jobs --------------------------------------------------------------------------------------------

    def add(
        self,
        id: str,
        owner: str,
        pictures: Sequence[NewPicture],
        *,
        kind: str,
        title: str,
        model: str,
        vae: str | None,
        settings: Mapping[str, object],
    ) -> Job:
        """A new job, queued."""
        plain = [json.dumps(picture.draft) for picture in pictures]  # before the lock is taken
        with self._writing() as database:
            database.execute(
                "INSERT INTO jobs (id, owner, kind, title, model, vae, settings, state, created) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (id, owner, kind, title, model, vae, json.dumps(settings), JobState.QUEUED, time.time()),
            )
            database.executemany(
                "INSERT INTO pictures (job, place, label, draft, state) VALUES (?, ?, ?, ?, ?)",
                [
                    (id, place, picture.label, draft, JobState.QUEUED)
                    for place, (picture, draft) in enumerate(zip(pictures, plain, strict=True))
                ],
            )
        job = self.job(id)
        assert job is not None
        return job

    def job(self, id: str) -> Job | None:
        rows = self._rows(f"SELECT {_JOB} FROM jobs WHERE id = ?", id)
        return _job(rows[0]) if rows else None

    def unfinished(self) -> list[Job]:
        """All queued or running jobs, in the order in which they came."""
        return [
            _job(row)
            for row in self._rows(
                f"SELECT {_JOB} FROM jobs WHERE state IN (?, ?) ORDER BY seq",
                JobState.QUEUED,
                JobState.RUNNING,
            )
        ]

    def jobs_of(self, owner: str, limit: int, before: str | None = None) -> list[Job]:
        """At most `limit` jobs of an owner, the newest first. before: a job's id; only older jobs."""
        return [
            _job(row)
            for row in self._rows(
                f"SELECT {_JOB} FROM jobs WHERE owner = ? AND seq < coalesce((SELECT seq FROM jobs WHERE id = ?), ?) "
                "ORDER BY seq DESC LIMIT ?",
                *(owner, before, 2**62, limit),
            )
        ]

    def tallies(self, jobs: Sequence[str]) -> dict[str, Tally]:
        """The tallies of these jobs, by id. They come from an index alone; no picture is read."""
        states: dict[str, dict[JobState, int]] = {job: {} for job in jobs}
        steps, unet_rows = dict.fromkeys(jobs, 0), dict.fromkeys(jobs, 0)
        for job, state, count, of_steps, of_rows in self._rows(
            "SELECT job, state, count(*), sum(steps), sum(unet_rows) FROM pictures "
            f"WHERE job IN ({', '.join('?' * len(jobs))}) GROUP BY job, state",
            *jobs,
        ):
            known = _state(state)
            states[job][known] = states[job].get(known, 0) + count
            steps[job] += of_steps
            unet_rows[job] += of_rows
        return {
            job: Tally(states[job], steps[job], steps[job], states[job].get(JobState.DONE, 0), unet_rows[job])
            for job in jobs
        }

    def ended_before(self, moment: float) -> list[Job]:
        """The jobs that ended before a moment, in seconds since 1970."""
        return [
            _job(row) for row in self._rows(f"SELECT {_JOB} FROM jobs WHERE ended < ? ORDER BY seq", moment)
        ]

    def begin(self, id: str) -> None:
        """Marks a queued job as running."""
        with self._writing() as database:
            database.execute(
                "UPDATE jobs SET state = ?, attempts = attempts + 1, began = coalesce(began, ?) "
                "WHERE id = ? AND state = ?",
                (JobState.RUNNING, time.time(), id, JobState.QUEUED),
            )

    def end(self, id: str, state: JobState, error: str = "") -> None:
        with self._writing() as database:
            database.execute(
                "UPDATE jobs SET state = ?, error = ?, ended = ? WHERE id = ?",
                (state, whole_text(error), time.time(), id),
            )

    def delete(self, id: str) -> None:
        with self._writing() as database:
            database.execute("DELETE FROM jobs WHERE id = ?", (id,))

    def delete_kind(self, kind: str) -> None:
        with self._writing() as database:
            database.execute("DELETE FROM jobs WHERE kind = ?", (kind,))

    def stop(self, id: str) -> None:
        """Cancels a job and its pictures that are not over. It is on the disk when this returns."""
        with self._writing() as database:
            stopped = database.execute(
                f"UPDATE pictures SET state = ?, ended = ? WHERE job = ? AND {_NOT_OVER}",
                (JobState.CANCELLED, time.time(), id),
            )
            if stopped.rowcount:
                database.execute(
                    "UPDATE jobs SET state = ?, ended = ? WHERE id = ?", (JobState.CANCELLED, time.time(), id)
                )

    def begin_loading(self, model: str, vae: str | None) -> None:
        """Notes that a model is being loaded: if the process dies now, the model may be the cause."""
        with self._writing() as database:
            database.execute(
                "INSERT INTO loading (model, vae, at_work) VALUES (?, ?, 1) "
                "ON CONFLICT (model, vae) DO UPDATE SET at_work = 1",
                (model, vae or ""),
            )

    def end_loading(self, model: str, vae: str | None, *, loaded: bool) -> None:
        """Notes that a model is not being loaded any more. loaded: loading came to its end without killing the process,
        so earlier deaths are forgotten."""
        with self._writing() as database:
            database.execute(
                "UPDATE loading SET at_work = 0, deaths = CASE WHEN ? THEN 0 ELSE deaths END "
                "WHERE model = ? AND vae = ?",
                (loaded, model, vae or ""),
            )

    # -- after the end of a server -----------------------------------------------------------------------

    def recover(self, *, interrupted: bool) -> None:
        """Puts running jobs and pictures back into the queue.

        interrupted: whether the earlier server may have died, in which case something is still marked as in the making.
        One death proves nothing: somebody may have killed the server. Pictures in the making become suspects, which are
        drawn alone. A picture fails when the studio has died MOST_DEATHS times while it alone was in the making; the
        pictures that wait for a model fail when it has died MOST_LOADS times while that model was being loaded.
        """
        with self._writing() as database:
            if interrupted:
                self._suspect(database)
                self._give_up_loading(database)
            database.execute("UPDATE pictures SET at_work = 0 WHERE at_work")
            database.execute("UPDATE loading SET at_work = 0")
            for table in ("jobs", "pictures"):
                database.execute(
                    f"UPDATE {table} SET state = ? WHERE state = ?", (JobState.QUEUED, JobState.RUNNING)
                )

    def _suspect(self, database: sqlite3.Connection) -> None:
        at_work = f"at_work AND {_NOT_OVER}"
        database.execute(f"UPDATE pictures SET suspect = 1 WHERE {at_work}")
        [[together]] = database.execute(f"SELECT count(*) FROM pictures WHERE {at_work}").fetchall()
        if together != 1:
            return
        database.execute(f"UPDATE pictures SET deaths = deaths + 1 WHERE {at_work}")
        database.execute(
            f"UPDATE pictures SET state = ?, error = ?, ended = ? WHERE {at_work} AND deaths >= ?",
            (
                JobState.FAILED,
                f"the studio died {MOST_DEATHS} times while it made this picture and no other; make it smaller, or "
                "look into the server's log",
                time.time(),
                MOST_DEATHS,
            ),
        )

    def _give_up_loading(self, database: sqlite3.Connection) -> None:
        database.execute("UPDATE loading SET deaths = deaths + 1 WHERE at_work")
        for model, vae in database.execute(
            "SELECT model, vae FROM loading WHERE at_work AND deaths >= ?", (MOST_LOADS,)
        ).fetchall():
            database.execute(
                f"UPDATE pictures SET state = ?, error = ?, ended = ? WHERE {_NOT_OVER} AND job IN "
                "(SELECT id FROM jobs WHERE model = ? AND coalesce(vae, '') = ?)",
                (
                    JobState.FAILED,
                    f"the studio died {MOST_LOADS} times while it loaded {model}; is there enough memory for it?",
                    *(time.time(), model, vae),
                ),
            )
            database.execute("DELETE FROM loading WHERE model = ? AND vae = ?", (model, vae))

    # -- pictures ----------------------------------------------------------------------------------------

    def pictures_of(self, job: str) -> list[PictureRow]:
        return [
            _picture(row)
            for row in self._rows(f"SELECT {_PICTURE} FROM pictures WHERE job = ? ORDER BY place", job)
        ]

    def slice_of(self, job: str, first: int, most: int, *, records: bool) -> list[PictureRow]:
        """At most `most` pictures of a job, from place `first` on. records: whether to read their records too."""
        return [
            _picture(row)
            for row in self._rows(
                f"SELECT {_PICTURE if records else _BRIEFLY} FROM pictures WHERE job = ? AND place >= ? "
                "ORDER BY place LIMIT ?",
                *(job, first, most),
            )
        ]

    def waiting_of(self, job: str) -> Iterator[PictureRow]:
        """A job's queued pictures, read one after another."""
        first = 0
        while rows := self._rows(
            f"SELECT {_BRIEFLY} FROM pictures WHERE job = ? AND state = ? AND place >= ? ORDER BY place LIMIT ?",
            *(job, JobState.QUEUED, first, AT_ONCE),
        ):
            yield from map(_picture, rows)
            first = rows[-1][1] + 1

    def last_begun(self, job: str) -> int:
        """The place of the last picture that is done or in the making; 0 where none is."""
        [[place]] = self._rows(
            "SELECT coalesce(max(place), 0) FROM pictures WHERE job = ? AND state IN (?, ?)",
            *(job, JobState.DONE, JobState.RUNNING),
        )
        return int(place)

    def files_of(self, job: str) -> list[str]:
        """The files of a job's finished pictures."""
        rows = self._rows("SELECT file FROM pictures WHERE job = ? AND file IS NOT NULL", job)
        return [file for (file,) in rows]

    def outcome(self, job: str) -> tuple[set[JobState], list[str]]:
        """The states of a job's pictures, and the first few reasons why some failed, each once."""
        states = self._rows("SELECT DISTINCT state FROM pictures WHERE job = ?", job)
        failed = self._rows(
            "SELECT error FROM pictures WHERE job = ? AND state = ? GROUP BY error ORDER BY min(place) LIMIT ?",
            *(job, JobState.FAILED, MOST_REASONS),
        )
        return {_state(state) for (state,) in states}, [error for (error,) in failed]

    def hand_over(self, job: str, index: int) -> None:
        """Notes that a picture is in the making: if the process dies now, the picture may be the cause."""
        with self._writing() as database:
            database.execute("UPDATE pictures SET at_work = 1 WHERE job = ? AND place = ?", (job, index))

    def take_back(self, job: str, index: int) -> None:
        """Marks a picture that was handed over as queued again."""
        with self._writing() as database:
            database.execute(
                f"UPDATE pictures SET state = ?, at_work = 0 WHERE job = ? AND place = ? AND {_NOT_OVER}",
                (JobState.QUEUED, job, index),
            )

    def start_picture(self, job: str, index: int) -> None:
        with self._writing() as database:
            database.execute(
                f"UPDATE pictures SET state = ?, at_work = 1 WHERE job = ? AND place = ? AND {_NOT_OVER}",
                (JobState.RUNNING, job, index),
            )

    def finish_picture(self, job: str, index: int, file: str, record: Mapping[str, Any]) -> bool:
        """Stores a finished picture. False, and nothing changes: it was stopped or deleted meanwhile."""
        with self._writing() as database:
            finished = database.execute(
                "UPDATE pictures SET state = ?, file = ?, record = ?, ended = ?, at_work = 0, suspect = 0, steps = ?, "
                f"unet_rows = ? WHERE job = ? AND place = ? AND {_NOT_OVER}",
                (JobState.DONE, file, json.dumps(record), time.time(), *_costs(record), job, index),
            )
            database.execute(
                "UPDATE jobs SET attempts = 1 WHERE id = ? AND state = ?", (job, JobState.RUNNING)
            )
        return finished.rowcount > 0

    def end_pictures(self, job: str, indices: Sequence[int], state: JobState, error: str = "") -> None:
        """Ends those of these pictures that are not over."""
        self.end_all(job, {error: indices}, state)

    def end_all(self, job: str, reasons: Mapping[str, Sequence[int]], state: JobState) -> None:
        """Ends those of a job's pictures that are not over. reasons: error -> the pictures' places."""
        if not reasons:
            return
        with self._writing() as database:
            database.executemany(
                f"UPDATE pictures SET state = ?, error = ?, ended = ?, at_work = 0 "
                f"WHERE job = ? AND place = ? AND {_NOT_OVER}",
                [
                    (state, whole_text(error), time.time(), job, index)
                    for error, indices in reasons.items()
                    for index in indices
                ],
            )

    def delete_picture(self, job: str, index: int) -> None:
        with self._writing() as database:
            database.execute("DELETE FROM pictures WHERE job = ? AND place = ?", (job, index))

    def gallery(
        self, owner: str, limit: int, offset: int, search: str, without: Sequence[str]
    ) -> list[PictureRow]:
        """An owner's finished pictures, the newest first.

        search: words; draft or label must contain each of them. without: kinds of jobs that are left out.
        Raises RequestError for a search that is too long, or that takes too long.
        """
        words = words_of(search)
        like = " AND (draft LIKE ? ESCAPE '\\' OR label LIKE ? ESCAPE '\\')" * len(words)
        values = [value for word in words for value in (_like(word), _like(word))]
        kinds = "".join(", ?" for _ in without)[2:]
        with machine_faults(), closing(self._reading()) as database:
            until = time.monotonic() + LONGEST_SEARCHING
            database.set_progress_handler(lambda: int(time.monotonic() > until), LOOK_AT_THE_CLOCK)
            try:
                rows = database.execute(
                    f"SELECT {_PICTURE} FROM pictures WHERE state = ? AND job IN "
                    f"(SELECT id FROM jobs WHERE owner = ? AND kind NOT IN ({kinds})){like} "
                    "ORDER BY ended DESC, place LIMIT ? OFFSET ?",
                    (JobState.DONE, owner, *without, *values, limit, min(offset, 2**62)),
                ).fetchall()
            except sqlite3.OperationalError as error:
                if time.monotonic() <= until:
                    raise
                raise RequestError(
                    f"the search took more than {LONGEST_SEARCHING:.0f} seconds; search for fewer words"
                ) from error
        return [_picture(row) for row in rows]

    def owners_of(self, file: str) -> set[str]:
        """The owners of the picture in this file; empty where it is no picture of a job."""
        query = "SELECT owner FROM jobs JOIN pictures ON pictures.job = jobs.id WHERE file = ?"
        return {owner for (owner,) in self._rows(query, file)}

    def drafts(self) -> Iterator[Mapping[str, Any]]:
        """Every picture's draft that can be read."""
        with machine_faults(), closing(self._reading()) as database:
            for (draft,) in database.execute("SELECT draft FROM pictures"):
                with suppress(StudioError):
                    yield _object(draft, "a draft")


def _text(stored: bytes) -> str:
    """A text of the database. Bytes that are not UTF-8 become question marks, so that they break no query."""
    return stored.decode("utf-8", "replace")


def _like(word: str) -> str:
    escaped = json.dumps(word)[1:-1]  # as it is written in the JSON
    for special in "\\%_":
        escaped = escaped.replace(special, f"\\{special}")
    return f"%{escaped}%"


def _costs(record: Mapping[str, Any]) -> tuple[int, int]:
    """The steps and the UNet rows, in full or shallow, that a picture took."""
    return (
        int(record.get("executed_steps", 0)),
        int(record.get("unet_rows", 0)) + int(record.get("shallow_rows", 0)),
    )


def _stored_costs(record: object) -> tuple[int, int]:
    """The costs by a record as it is stored; 0 for one that cannot be read."""
    try:
        return _costs(_object(record, "a record"))
    except (StudioError, ValueError, TypeError):
        return (0, 0)


def _object(stored: object, what: str) -> dict[str, Any]:
    """A JSON object as it is stored. Raises StudioError."""
    with reading(what, SetupError, "delete it"):
        content = read_json(stored if isinstance(stored, str) else "", what, finite=False)
        if not isinstance(content, dict):
            raise SetupError(f"{what} is no JSON object; delete it")
        return content


def _state(stored: object) -> JobState:
    """A state as it is stored; FAILED for one that there is not."""
    return next((state for state in JobState if state == stored), JobState.FAILED)


class _Cells:
    """Reads the values of one row. fault: why the first unreadable one cannot be read; "" while all can."""

    def __init__(self, what: str) -> None:
        self.fault = ""
        self._what = what

    def json(self, name: str, stored: object) -> dict[str, Any]:
        """A JSON object; {} for what is none."""
        try:
            return _object(stored, f"{self._what}: {name} in the database")
        except StudioError as error:
            self.fault = self.fault or str(error)
            return {}

    def state(self, stored: object) -> JobState:
        if _state(stored) != stored:
            self._not(f"state {short(stored)!r}")
        return _state(stored)

    def text(self, name: str, stored: object) -> str:
        if not isinstance(stored, str):
            self._not(f"{name} {short(stored)!r}")
        return str(stored)

    def number(self, name: str, stored: object) -> float:
        if not isinstance(stored, int | float):
            self._not(f"{name} {short(stored)!r}")
            return 0.0
        return stored

    def _not(self, said: str) -> None:
        self.fault = self.fault or f"{self._what}: {said} in the database cannot be read; delete it"


def _job(row: Sequence[Any]) -> Job:
    seq, id, owner, kind, title, model, vae, settings, state, error, attempts, created, began, ended = row
    cells = _Cells(f"job {id}")
    job = Job(
        seq,
        id,
        owner,
        cells.text("kind", kind),
        cells.text("title", title),
        cells.text("model", model),
        None if vae is None else cells.text("vae", vae),
        cells.json("settings", settings),
        cells.state(state),
        cells.text("error", error),
        int(cells.number("attempts", attempts)),
        cells.number("created", created),
        None if began is None else cells.number("began", began),
        None if ended is None else cells.number("ended", ended),
    )
    if not cells.fault:
        return job
    return replace(job, error="\n".join(filter(None, (job.error, cells.fault))), fault=cells.fault)


def _picture(row: Sequence[Any]) -> PictureRow:
    job, place, label, draft, state, error, file, record, ended, suspect, deaths, steps = row
    cells = _Cells(f"job {job}, picture {place}")
    picture = PictureRow(
        job,
        place,
        cells.text("label", label),
        cells.json("draft", draft),
        cells.state(state),
        cells.text("error", error),
        None if file is None else cells.text("file", file),
        None if record is None else cells.json("record", record),
        None if ended is None else cells.number("ended", ended),
        bool(suspect),
        int(cells.number("deaths", deaths)),
        steps=int(cells.number("steps", steps)),
    )
    if not cells.fault:
        return picture
    return replace(picture, error="\n".join(filter(None, (picture.error, cells.fault))), fault=cells.fault)
