"""Arenas: layout, the sequence lock of slots, private files, and removal of files that killed trainers left."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from archon_core.errors import ServerError
from archon_core.serving.arena import (
    PAGE_BYTES,
    ArenaHeader,
    SlotPlace,
    SlotState,
    begin_writing,
    check_slot,
    end_writing,
    read_slot,
)
from archon_core.serving.arena_file import FOLDER, create_arena, open_arena, sweep_arenas

HEADER = ArenaHeader.for_buckets(5000, owner=42)


@pytest.fixture
def arena(tmp_path):
    with create_arena(HEADER, run="my run/1", folder=tmp_path) as made:
        yield made


def fill(arena, slot, content, version=3, bucket=1):
    generation = begin_writing(arena.memory, slot)
    arena.slot(slot, len(content))[:] = content
    end_writing(arena.memory, slot, SlotState(generation, version, bucket, len(content)))
    return SlotPlace(arena.name, slot, generation)


def test_slots_are_page_aligned_and_hold_the_largest_bucket():
    assert HEADER.slot_bytes == 2 * PAGE_BYTES
    assert HEADER.start_of(1) == 3 * PAGE_BYTES
    assert HEADER.n_bytes == 5 * PAGE_BYTES


def test_a_reader_sees_what_the_trainer_wrote(arena, tmp_path):
    place = fill(arena, 1, b"weights")
    with open_arena(arena.name, folder=tmp_path) as reader:
        assert reader.header == HEADER
        check_slot(reader.memory, place, version=3, bucket=1, n_bytes=7)
        assert bytes(reader.slot(1, 7)) == b"weights"
        with pytest.raises(TypeError, match="read-only"):
            reader.slot(1, 7)[0] = 0


def test_a_slot_that_is_being_written_or_was_reused_is_refused(arena):
    place = fill(arena, 0, b"weights")
    for change in ({"version": 4}, {"bucket": 2}, {"n_bytes": 6}):
        with pytest.raises(ServerError, match="has reused the slot"):
            check_slot(arena.memory, place, **{"version": 3, "bucket": 1, "n_bytes": 7, **change})
    begin_writing(arena.memory, 0)
    with pytest.raises(ServerError, match="has reused the slot"):
        check_slot(arena.memory, place, version=3, bucket=1, n_bytes=7)
    # The same bucket again has another generation: a reader of the old notice cannot mistake it.
    fill(arena, 0, b"weights")
    with pytest.raises(ServerError, match="has reused the slot"):
        check_slot(arena.memory, place, version=3, bucket=1, n_bytes=7)


def test_an_unfinished_write_leaves_an_odd_generation_that_the_next_write_ends(arena):
    first = begin_writing(arena.memory, 0)
    assert read_slot(arena.memory, 0).generation == first - 1 == 1
    assert begin_writing(arena.memory, 0) == first


def test_the_file_is_private_named_after_user_and_run_and_removed_by_its_owner(tmp_path):
    arena = create_arena(HEADER, run="my run/1", folder=tmp_path)
    found = (tmp_path / arena.name).stat()
    assert found.st_mode & 0o777 == 0o600
    assert found.st_blocks * 512 >= HEADER.n_bytes, "all memory is allocated"
    assert arena.name.startswith(f"archon-weights-{os.getuid()}-my_run_1-")
    reader = open_arena(arena.name, folder=tmp_path)
    reader.close()
    assert (tmp_path / arena.name).exists(), "a reader removes nothing"
    arena.close()
    arena.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../etc/passwd", "archon-weights-0-run", "other", "archon-weights-0-a/b-01234567"])
def test_only_names_of_arenas_are_opened(name, tmp_path):
    with pytest.raises(ServerError, match="allowed are names of arenas"):
        open_arena(name, folder=tmp_path)


def test_files_that_are_not_private_arenas_are_refused(tmp_path):
    name = f"archon-weights-{os.getuid()}-run-01234567"
    path = tmp_path / name
    with pytest.raises(ServerError, match="No such file"):
        open_arena(name, folder=tmp_path)
    path.write_bytes(b"")
    path.chmod(0o600)
    with pytest.raises(ServerError, match="empty file"):
        open_arena(name, folder=tmp_path)
    path.write_bytes(bytes(PAGE_BYTES))
    with pytest.raises(ServerError, match="found no arena of this format in 4096 bytes"):
        open_arena(name, folder=tmp_path)
    path.chmod(0o644)
    with pytest.raises(ServerError, match="allowed are private files"):
        open_arena(name, folder=tmp_path)
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(ServerError, match="cannot open it"):
        open_arena(name, folder=tmp_path)


def test_full_shared_memory_is_an_error_before_any_touch_and_leaves_no_file(tmp_path, monkeypatch):
    def full(descriptor, start, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ServerError, match=r"the arena needs 0 MiB.*lower rollout.weight_bucket_mb"):
        create_arena(HEADER, run="run", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys, time
from archon_core.serving.arena import ArenaHeader
from archon_core.serving.arena_file import create_arena
print(create_arena(ArenaHeader.for_buckets(5000), run="killed").name, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not FOLDER.is_dir(), reason="needs /dev/shm")
def test_arenas_of_killed_trainers_are_swept_and_those_of_living_ones_stay():
    process = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    name = process.stdout.readline().strip()
    assert name not in sweep_arenas()
    assert (FOLDER / name).exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    sweep_arenas()  # any other trainer of this user may do it first
    assert not (FOLDER / name).exists()


@pytest.mark.parametrize("failing", ["os.open", "fcntl.flock"])
def test_every_refusal_of_the_system_is_a_server_error(tmp_path, monkeypatch, failing):
    def refuse(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(f"archon_core.serving.arena_file.{failing}", refuse)
    with pytest.raises(ServerError, match=r"cannot create a file in .*Too many open files"):
        create_arena(HEADER, run="r", folder=tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())
