"""A store keeps what was written, and touches nothing that it did not write."""

import contextlib
import json
import math
import os
import random
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from experiments._store.store import (
    Row,
    StoreError,
    columns,
    latest,
    read,
    read_meta,
    writing,
)

ROW = Row(
    key="a",
    experiment="tiny",
    config={"experiment": "tiny", "seed": 0, "data": {"name": "d", "rows": [1, 2]}},
    status="finished",
    error=None,
    records=[{"T": 1, "loss": 0.5, "data.name": "d"}],
    provenance={"code_version": "one"},
    seconds=1.5,
    attempts=1,
    finished_at="2026-01-01T00:00:00+00:00",
)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "results.sqlite"
    with writing(path) as store:
        store.write(ROW)
    return path


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_what_is_written_is_read_also_while_the_writer_lives(tmp_path):
    path = tmp_path / "new folder" / "results.sqlite"
    with writing(path) as store:
        store.note("sweep", {"axes": [1]})
        store.write(ROW)
        store.write(ROW._replace(key="b", status="failed", error="why", records=[]))
        assert [row.key for row in read(path)] == ["a", "b"]
        assert store.statuses() == {"a": ("finished", 1), "b": ("failed", 1)}
    assert read(path)[0] == ROW
    assert read_meta(path) == {"schema_version": 2, "sweep": {"axes": [1]}}


def test_a_finished_row_stays_and_a_failed_one_is_replaced(path):
    with writing(path) as store:
        store.write(ROW._replace(status="failed", error="later"))
        store.write(ROW._replace(key="b", status="timed_out", error="slow"))
        store.write(ROW._replace(key="b", attempts=2))
    assert read(path) == [ROW, ROW._replace(key="b", attempts=2)]


def test_nan_and_inf_stay_what_they_are(path):
    with writing(path) as store:
        store.write(
            ROW._replace(key="b", records=[{"loss": v} for v in (math.nan, -math.inf)])
        )
    (_, row) = read(path)
    assert math.isnan(row.records[0]["loss"])
    assert row.records[1]["loss"] == -math.inf
    np.testing.assert_array_equal(columns(path)["loss"], [0.5, math.nan, -math.inf])


def test_a_second_writer_is_refused_and_the_first_goes_on(path):
    link = path.with_name("link.sqlite")
    link.symlink_to(path)
    with writing(path) as store:
        for name in (path, link):
            with (
                pytest.raises(StoreError, match=f"process {os.getpid()}"),
                writing(name),
            ):
                pass
        store.write(ROW._replace(key="b"))
    assert len(read(path)) == 2


@pytest.mark.parametrize("length", [0, 10, 99, 100, 1000, 4096, 8192, -1])
def test_a_truncated_store_is_refused_and_stays_as_it_is(path, length):
    content = path.read_bytes()[:length]
    path.write_bytes(content)
    for use in (read, lambda p: writing(p).__enter__()):
        with pytest.raises(StoreError, match=r"truncated|damaged"):
            use(path)
    assert path.read_bytes() == content


def test_foreign_files_and_newer_stores_are_refused_and_stay_as_they_are(path):
    other = path.with_name("other.sqlite")
    with contextlib.closing(sqlite3.connect(other)) as database:
        database.execute("CREATE TABLE points (key)")
    text = path.with_name("text.sqlite")
    text.write_text("not a store\n" * 50, encoding="utf-8")
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 7")
    before = contents(path.parent)
    cases = {other: "not a results store", text: "not an SQLite", path: "version 7"}
    for file, message in cases.items():
        for use in (read, lambda p: writing(p).__enter__()):
            with pytest.raises(StoreError, match=message):
                use(file)
    after = contents(path.parent)
    assert {name: after[name] for name in before} == before


def test_a_log_without_its_store_is_not_replayed_into_a_new_one(path):
    path.with_name("lost.sqlite-wal").write_bytes(b"x")
    with pytest.raises(StoreError, match="has lost its store"):
        writing(path.with_name("lost.sqlite")).__enter__()


def test_a_changed_bit_is_found_wherever_it_is(path):
    """Or it is where nothing is kept: then what is read is what was written."""
    with writing(path) as store:
        store.note("sweep", {"axes": [1, 2]})
        for x in range(20):
            store.write(ROW._replace(key=f"{x:024}", records=[{"loss": x / 7}]))
    good, rows, meta = path.read_bytes(), read(path), read_meta(path)
    rng, refused = random.Random(0), 0
    for _ in range(300):
        content = bytearray(good)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            assert (read(path), read_meta(path)) == (rows, meta)
        except StoreError:
            refused += 1
        for end in ("-wal", "-shm"):
            path.with_name(path.name + end).unlink(missing_ok=True)
    assert refused > 40  # most of the file is empty


FIRST_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA application_id = 0x6D65746C;
PRAGMA user_version = 1;
CREATE TABLE points (
  key TEXT PRIMARY KEY,
  experiment TEXT NOT NULL,
  config TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('finished', 'failed', 'timed_out')),
  error TEXT,
  records TEXT NOT NULL,
  provenance TEXT NOT NULL,
  seconds REAL NOT NULL,
  attempts INTEGER NOT NULL,
  finished_at TEXT NOT NULL
);
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO meta VALUES ('schema_version', '1');
INSERT INTO meta VALUES ('sweep', '{"axes": [1]}');
"""
"""As stores were made before rows had seals."""


def test_a_store_without_seals_opens_and_gets_them_where_it_is_written_to(path):
    path.unlink()
    values = [json.dumps(v) if isinstance(v, dict | list) else v for v in ROW]
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(FIRST_SCHEMA)
        with database:
            marks = ", ".join("?" * len(values))
            database.execute(f"INSERT INTO points VALUES ({marks})", values)
    assert read(path) == [ROW]
    assert read_meta(path) == {"schema_version": 1, "sweep": {"axes": [1]}}
    with writing(path) as store:
        assert store.statuses() == {"a": ("finished", 1)}
        store.write(ROW._replace(key="b"))
    assert read(path) == [ROW, ROW._replace(key="b")]
    assert read_meta(path) == {"schema_version": 2, "sweep": {"axes": [1]}}
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE points SET seconds = 2.5 WHERE key = 'a'")
    with pytest.raises(StoreError, match="row 1 of 2 points is not what was written"):
        read(path)


GONE = {
    "moved": lambda path: path.rename(path.with_name("elsewhere")),
    "moved or deleted": lambda path: path.unlink(),
    "cut short": lambda path: os.truncate(path, 4096),
    "deleted while": lambda path: (
        shutil.copy(path, path.with_name("copy")),
        path.with_name("copy").rename(path),  # as rsync or an editor does
    ),
}


@pytest.mark.parametrize("message", GONE)
@pytest.mark.parametrize("further", [True, False], ids=["at a write", "at the end"])
def test_a_store_that_is_gone_while_it_is_open_is_an_error(path, message, further):
    with pytest.raises(StoreError, match=message), writing(path) as store:
        _lose(path, store, message, further=further)


def _lose(path, store, message, *, further):
    store.write(ROW._replace(key="b"))
    GONE[message](path)
    if further:
        with pytest.raises(StoreError, match=message):
            store.write(ROW._replace(key="c"))


def test_a_copy_of_the_file_alone_has_what_was_written_a_second_before(path):
    with writing(path) as store:
        store.write(ROW._replace(key="b"))
        copy = path.with_name("copy.sqlite")
        for _ in range(100):
            shutil.copy(path, copy)
            if len(read(copy)) == 2:
                break
            time.sleep(0.05)
        assert read(copy) == read(path)


def test_what_is_no_file_is_not_read(path):
    pipe = path.with_name("pipe")
    os.mkfifo(pipe)
    for other in (pipe, Path("/dev/zero"), path.parent):
        for use in (read, lambda p: writing(p).__enter__()):
            with pytest.raises(StoreError, match=r"is not a file|next to the store"):
                use(other)


def test_hostile_text_and_numbers_are_kept_and_read(path):
    error, big = "a lone \ud800, \x1b[31m and \0", 10**400
    with writing(path) as store:
        store.write(ROW._replace(key="b", error=error, records=[{"loss": big}]))
    (_, row) = read(path)
    assert row.error == error.replace("\ud800", "\\ud800")
    assert columns(path)["loss"].tolist() == [0.5, big]


def test_a_full_file_system_is_a_clear_error_and_earlier_rows_stay(path):
    big = [{"text": "x" * 10**6}]
    with writing(path) as store:
        store._database.execute("PRAGMA max_page_count = 20")
        with pytest.raises(StoreError, match=r"full.*already in it are intact"):
            store.write(ROW._replace(key="b", records=big))
        store.write(ROW._replace(key="c"))
    assert [row.key for row in read(path)] == ["a", "c"]


def test_a_read_only_store_can_be_read_and_refuses_rows():
    # As another user than root, whom permissions do not stop.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with writing(folder / "results.sqlite") as store:
            store.write(ROW)
        (folder / "results.sqlite.lock").unlink()
        folder.chmod(0o555)
        (folder / "results.sqlite").chmod(0o444)
        root = os.geteuid() == 0
        try:
            if root:
                os.seteuid(65534)
            assert read(folder / "results.sqlite") == [ROW]
            for file in ("results.sqlite", "new.sqlite"):
                with (
                    pytest.raises(StoreError, match="cannot write next to the store"),
                    writing(folder / file),
                ):
                    pass
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)


def test_columns_suit_numpy_and_pandas(path):
    with writing(path) as store:
        store.write(
            ROW._replace(
                key="b",
                config={"experiment": "tiny", "seed": 3, "data": {"name": "e"}},
                records=[
                    {"T": 2, "loss": 1, "ok": True, "seed": 9},
                    {"table": "curves", "curve": [1.0, 2.0]},
                ],
            )
        )
        failed = ROW._replace(key="c", status="failed", error="why", records=[])
        store.write(failed)
    found = columns(path)
    assert {len(column) for column in found.values()} == {4}
    assert found["key"].tolist() == ["a", "b", "b", "c"]
    assert found["seed"].dtype == np.int64
    np.testing.assert_array_equal(found["T"], [1, 2, np.nan, np.nan])
    np.testing.assert_array_equal(found["loss"], [0.5, 1, np.nan, np.nan])
    np.testing.assert_array_equal(found["record.seed"], [np.nan, 9, np.nan, np.nan])
    assert "record.data.name" not in found  # says what the config says
    assert found["data.name"].tolist() == ["d", "e", "e", "d"]
    assert found["data.rows"].tolist() == [[1, 2], None, None, [1, 2]]
    assert found["table"].tolist() == [None, None, "curves", None]
    assert found["curve"].tolist() == [None, None, [1.0, 2.0], None]
    assert found["status"].tolist() == ["finished"] * 3 + ["failed"]


def test_columns_make_a_frame(path):
    pandas = pytest.importorskip("pandas")
    with writing(path) as store:
        store.write(ROW._replace(key="b", records=[{"loss": 1, "data.name": "e"}]))
    frame = pandas.DataFrame(columns(path))
    assert frame.groupby("data.name")["loss"].sum().to_dict() == {"d": 1.5}


def test_the_latest_of_equal_questions_is_chosen():
    newer = ROW._replace(key="z", finished_at="2026-02-01T00:00:00+00:00")
    other = ROW._replace(key="o", config={"seed": 1})
    assert latest(iter([newer, ROW, other])) == [newer, other]
    assert json.dumps(ROW.config)
