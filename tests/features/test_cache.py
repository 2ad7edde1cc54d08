"""The feature cache: shared by content, complete or rebuilt, built once, with clear errors."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from toolkit.errors import DataError
from toolkit.features import cache as cache_module
from toolkit.features import mapped_rows
from toolkit.features.cache import FeatureCache, Segment, default_cache_folder, feature_cache
from toolkit.own_folders import MARK

WIDTH = 8
SETTINGS = {"kind": "test", "width": WIDTH}


class Recorder:
    """Computes features from the content of files only, and records every call."""

    def __init__(self) -> None:
        self.calls: list[Segment] = []

    def __call__(self, segment: Segment) -> NDArray[np.float32]:
        self.calls.append(segment)
        return features(segment)


def features(segment: Segment) -> NDArray[np.float32]:
    """Features [1 to 20, WIDTH] from the bytes and the segment of a file."""
    seed = [*Path(segment.path).read_bytes(), int(segment.start or 0)]
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rng.integers(1, 21), WIDTH)).astype(np.float32)


def write_clips(folder: Path, count: int) -> list[Segment]:
    """Small files of equal size and different content."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.bin" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(f"clip {number:03}".encode())
    return [Segment(str(path)) for path in paths]


def check(cache: FeatureCache, segments: list[Segment]) -> None:
    """Check that every row equals what computing it now gives."""
    assert len(cache) == len(segments)
    for index, segment in enumerate(segments):
        np.testing.assert_array_equal(cache[index], features(segment))


def left_overs(root: Path) -> list[str]:
    """The content of a cache's folder, without locks."""
    return sorted(p.name for p in (root / "features").iterdir() if p.suffix != ".lock")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Folder of the caches."""
    return tmp_path / "root"


@pytest.fixture
def clips(tmp_path: Path) -> list[Segment]:
    """Ten clips."""
    return write_clips(tmp_path / "clips", 10)


@pytest.fixture
def built(root: Path, clips: list[Segment]) -> FeatureCache:
    """A complete cache of these clips."""
    return feature_cache(root, clips, SETTINGS, WIDTH, features)


# Sharing


def test_features_are_computed_once_and_kept(root: Path, clips: list[Segment]) -> None:
    compute = Recorder()
    first = feature_cache(root, clips, SETTINGS, WIDTH, compute)
    check(first, clips)
    assert sorted(compute.calls) == sorted(clips)
    second = feature_cache(root, clips, SETTINGS, WIDTH, compute)
    check(second, clips)
    assert len(compute.calls) == len(clips) and second.folder == first.folder
    assert left_overs(root) == [first.folder.name]


def test_more_clips_than_a_chunk(root: Path, tmp_path: Path) -> None:
    segments = write_clips(tmp_path / "many", cache_module.CHUNK + 30)
    check(feature_cache(root, segments, SETTINGS, WIDTH, features), segments)


def test_rows_are_read_only_float32(built: FeatureCache) -> None:
    rows = built[3]
    assert rows.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 1


def test_another_path_and_order_share_it(
    root: Path, clips: list[Segment], built: FeatureCache, tmp_path: Path
) -> None:
    moved = []
    for number, segment in enumerate(reversed(clips)):
        path = tmp_path / "elsewhere" / f"other name {number}.dat"
        path.parent.mkdir(exist_ok=True)
        shutil.copy(segment.path, path)
        moved.append(Segment(str(path)))
    compute = Recorder()
    cache = feature_cache(root, moved, SETTINGS, WIDTH, compute)
    assert cache.folder == built.folder and not compute.calls
    check(cache, moved)


def test_equal_clips_are_kept_once(root: Path, clips: list[Segment], tmp_path: Path) -> None:
    twin = tmp_path / "twin.bin"
    shutil.copy(clips[2].path, twin)
    compute = Recorder()
    segments = [*clips, Segment(str(twin)), clips[5]]
    cache = feature_cache(root, segments, SETTINGS, WIDTH, compute)
    check(cache, segments)
    assert len(compute.calls) == len(clips)


def test_parts_of_a_file_are_clips_of_their_own(root: Path, clips: list[Segment]) -> None:
    path = clips[0].path
    segments = [Segment(path), Segment(path, 0.0, 1.0), Segment(path, 1.0, 2.0)]
    compute = Recorder()
    check(feature_cache(root, segments, SETTINGS, WIDTH, compute), segments)
    assert len(compute.calls) == 3


@pytest.mark.parametrize("change", [{"kind": "other"}, {"rate": 8000}, {"width": 9}])
def test_other_settings_make_another(
    change: dict[str, object], root: Path, clips: list[Segment], built: FeatureCache
) -> None:
    compute = Recorder()
    other = feature_cache(root, clips, {**SETTINGS, **change}, WIDTH, compute)
    assert other.folder != built.folder and len(compute.calls) == len(clips)
    check(other, clips)
    check(built, clips)


def test_the_order_of_settings_is_nothing(
    root: Path, clips: list[Segment], built: FeatureCache
) -> None:
    same = dict(reversed(SETTINGS.items()))
    assert feature_cache(root, clips, same, WIDTH, features, build=False).folder == built.folder


def test_a_subset_or_a_new_clip_makes_another(
    root: Path, clips: list[Segment], built: FeatureCache
) -> None:
    for segments in (clips[:9], [*clips, Segment(clips[0].path, 0, 1)]):
        cache = feature_cache(root, segments, SETTINGS, WIDTH, features)
        assert cache.folder != built.folder
        check(cache, segments)


# Content and its hashes


def test_changed_content_is_noticed(root: Path, clips: list[Segment], built: FeatureCache) -> None:
    Path(clips[4].path).write_bytes(b"another content")
    cache = feature_cache(root, clips, SETTINGS, WIDTH, features)
    assert cache.folder != built.folder
    check(cache, clips)


def test_changed_content_of_equal_size_and_time_is_noticed(
    root: Path, clips: list[Segment], built: FeatureCache
) -> None:
    path = Path(clips[4].path)
    before = path.stat()
    path.write_bytes(b"CLIP 004")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    cache = feature_cache(root, clips, SETTINGS, WIDTH, features)
    assert cache.folder != built.folder
    check(cache, clips)


def test_only_changed_files_are_read_again(
    root: Path, clips: list[Segment], built: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    original = cache_module._hash_file
    monkeypatch.setattr(cache_module, "_hash_file", lambda p: hashed.append(p) or original(p))
    feature_cache(root, clips, SETTINGS, WIDTH, features)
    assert not hashed
    os.utime(clips[7].path)
    again = feature_cache(root, clips, SETTINGS, WIDTH, features)
    assert hashed == [clips[7].path] and again.folder == built.folder


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe\0\0", b"[1, 2]"])
def test_damaged_memory_of_hashes_is_forgotten(
    content: bytes, root: Path, clips: list[Segment], built: FeatureCache
) -> None:
    (remembered,) = (root / "hashes").iterdir()
    remembered.write_bytes(content)
    compute = Recorder()
    cache = feature_cache(root, clips, SETTINGS, WIDTH, compute)
    assert cache.folder == built.folder and not compute.calls
    check(cache, clips)


def test_relative_paths_are_those_of_the_working_folder(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of the same name, size and times in two folders are told apart by content."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    stat = cache_module._stat
    monkeypatch.setattr(cache_module, "_stat", lambda path: [*stat(path)[:1], 0, 0])
    for name in ("one", "two"):
        (tmp_path / name / "clip.bin").write_text(name)
        monkeypatch.chdir(tmp_path / name)
        segments = [Segment("clip.bin")]
        check(feature_cache(root, segments, SETTINGS, WIDTH, features), segments)


def test_relative_and_absolute_paths_together(
    root: Path, clips: list[Segment], built: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(clips[0].path).parent)
    mixed = [Segment(Path(s.path).name) if i % 2 else s for i, s in enumerate(clips)]
    cache = feature_cache(root, mixed, SETTINGS, WIDTH, features)
    assert cache.folder == built.folder
    check(cache, clips)


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    assert default_cache_folder() == cache_folder
    monkeypatch.delenv("TOOLKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache_folder() == Path("/somewhere/toolkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_folder() == Path.home() / ".cache" / "toolkit"


# Damage


def _edit_index(folder: Path, edit: Callable[[dict], object]) -> None:
    index = json.loads((folder / "index.json").read_text())
    edit(index)
    (folder / "index.json").write_text(json.dumps(index))


def _flip(folder: Path, place: int) -> None:
    body = bytearray((folder / "rows.f32").read_bytes())
    body[place] ^= 1
    (folder / "rows.f32").write_bytes(body)


def _shorten(path: Path, by: int) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def _swap_offsets(index: dict) -> None:
    first, second = index["clips"][:2]
    first["offset"], second["offset"] = second["offset"], first["offset"]


DAMAGE: dict[str, Callable[[Path], object]] = {
    "first bit": lambda f: _flip(f, 0),
    "last bit": lambda f: _flip(f, -1),
    "a byte less": lambda f: _shorten(f / "rows.f32", 1),
    "a row less": lambda f: _shorten(f / "rows.f32", 4 * WIDTH),
    "half of the rows": lambda f: _shorten(f / "rows.f32", (f / "rows.f32").stat().st_size // 2),
    "no bytes": lambda f: (f / "rows.f32").write_bytes(b""),
    "zeros": lambda f: (f / "rows.f32").write_bytes(bytes((f / "rows.f32").stat().st_size)),
    "a row more": lambda f: (f / "rows.f32").open("ab").write(bytes(4 * WIDTH)),
    "no rows": lambda f: (f / "rows.f32").unlink(),
    "no index": lambda f: (f / "index.json").unlink(),
    "empty index": lambda f: (f / "index.json").write_text(""),
    "index cut": lambda f: _shorten(f / "index.json", 20),
    "index of noise": lambda f: (f / "index.json").write_bytes(b"\xff\x00 not JSON"),
    "index of another kind": lambda f: (f / "index.json").write_text("[1, 2]"),
    "index without clips": lambda f: _edit_index(f, lambda i: i.pop("clips")),
    "index with no clip": lambda f: _edit_index(f, lambda i: i["clips"].clear()),
    "a clip less": lambda f: _edit_index(f, lambda i: i["clips"].pop()),
    "another key": lambda f: _edit_index(f, lambda i: i["clips"][0].update(key="x")),
    "another offset": lambda f: _edit_index(f, lambda i: i["clips"][3].update(offset=0)),
    "offsets swapped": lambda f: _edit_index(f, _swap_offsets),
    "another length": lambda f: _edit_index(f, lambda i: i["clips"][3].update(frames=1000)),
    "length of another kind": lambda f: _edit_index(f, lambda i: i["clips"][3].update(frames="9")),
    "another checksum": lambda f: _edit_index(f, lambda i: i["clips"][9].update(crc32=7)),
    "an endless checksum": lambda f: _edit_index(
        f, lambda i: i["clips"][9].update(crc32=float("inf"))
    ),
    "nothing inside": lambda f: [p.unlink() for p in f.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_made_anew(
    damage: str,
    root: Path,
    clips: list[Segment],
    built: FeatureCache,
    caplog: pytest.LogCaptureFixture,
) -> None:
    DAMAGE[damage](built.folder)
    compute = Recorder()
    with caplog.at_level(logging.WARNING):
        cache = feature_cache(root, clips, SETTINGS, WIDTH, compute)
    assert len(compute.calls) == len(clips)
    assert "damaged" in caplog.text and str(built.folder) in caplog.text
    assert cache.folder == built.folder
    check(cache, clips)
    feature_cache(root, clips, SETTINGS, WIDTH, compute)
    assert len(compute.calls) == len(clips)
    assert left_overs(root) == [built.folder.name]


def test_damage_in_a_later_chunk_is_found(root: Path, tmp_path: Path) -> None:
    segments = write_clips(tmp_path / "many", cache_module.CHUNK + 10)
    _flip(feature_cache(root, segments, SETTINGS, WIDTH, features).folder, -5)
    compute = Recorder()
    check(feature_cache(root, segments, SETTINGS, WIDTH, compute), segments)
    assert len(compute.calls) == len(segments)


def test_an_unfinished_folder_is_nothing(
    root: Path, clips: list[Segment], built: FeatureCache
) -> None:
    """Not even if its files are complete: only the renamed folder counts."""
    partial = built.folder.with_name(f".{built.folder.name}.partial")
    built.folder.rename(partial)
    (partial / "junk").write_text("junk")
    compute = Recorder()
    check(feature_cache(root, clips, SETTINGS, WIDTH, compute), clips)
    assert len(compute.calls) == len(clips)
    assert left_overs(root) == [built.folder.name]
    assert sorted(p.name for p in built.folder.iterdir()) == [MARK, "index.json", "rows.f32"]


# Several processes

BUILDER = """
import os, sys, time
from pathlib import Path
import numpy as np
from toolkit.features.cache import Segment, feature_cache

root, clips, log, go, seconds = sys.argv[1:]

def compute(segment):
    with open(log, "a") as file:
        file.write(segment.path + "\\n")
    time.sleep(float(seconds))
    body = Path(segment.path).read_bytes()
    return np.full((500, 8), int(body[-3:]), dtype=np.float32)

segments = [Segment(str(path)) for path in sorted(Path(clips).iterdir())]
print("ready", flush=True)
while not os.path.exists(go):
    time.sleep(0.01)
cache = feature_cache(Path(root), segments, {"builder": 1}, 8, compute)
print([int(cache[i][499, 7]) for i in range(len(cache))] == list(range(len(cache))))
"""


def _builder(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def builders() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start builder processes, and stop those that are still running at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        started.append(_builder(*arguments))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def test_a_killed_builder_leaves_nothing_whole(
    root: Path, tmp_path: Path, builders: Callable[..., subprocess.Popen[str]]
) -> None:
    write_clips(tmp_path / "clips", 60)
    log, go = tmp_path / "log", tmp_path / "go"
    go.touch()
    process = builders(root, tmp_path / "clips", log, go, 0.1)
    partials = root / "features"
    _wait(lambda: any(p.stat().st_size > 0 for p in partials.glob("*.partial/rows.f32")))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < len(log.read_text().splitlines()) < 60
    (left,) = left_overs(root)
    assert left.endswith(".partial")
    log.unlink()
    again = builders(root, tmp_path / "clips", log, go, 0)
    assert again.communicate(timeout=60)[0].split() == ["ready", "True"]
    assert len(log.read_text().splitlines()) == 60
    assert left_overs(root) == [left.removesuffix(".partial").removeprefix(".")]


def test_two_processes_make_it_once(
    root: Path, tmp_path: Path, builders: Callable[..., subprocess.Popen[str]]
) -> None:
    write_clips(tmp_path / "clips", 20)
    log, go = tmp_path / "log", tmp_path / "go"
    pair = [builders(root, tmp_path / "clips", log, go, 0.02) for _ in range(2)]
    for process in pair:
        assert process.stdout.readline() == "ready\n"
    go.touch()
    for process in pair:
        out, err = process.communicate(timeout=60)
        assert out == "True\n" and process.returncode == 0, err
    assert len(log.read_text().splitlines()) == 20
    assert len(left_overs(root)) == 1


def test_two_threads_make_it_once(root: Path, clips: list[Segment]) -> None:
    compute = Recorder()
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(feature_cache, root, clips, SETTINGS, WIDTH, compute) for _ in range(2)]
    for future in both:
        check(future.result(), clips)
    assert len(compute.calls) == len(clips)


def test_without_build_nothing_is_computed(
    root: Path, clips: list[Segment], built: FeatureCache
) -> None:
    compute = Recorder()
    check(feature_cache(root, clips, SETTINGS, WIDTH, compute, build=False), clips)
    assert not compute.calls
    with pytest.raises(FileNotFoundError):
        feature_cache(root, clips, {"kind": "absent"}, WIDTH, compute, build=False)
    assert not compute.calls and left_overs(root) == [built.folder.name]


# Clips that cannot be read


def _refusing(bad: set[str]) -> Callable[[Segment], NDArray[np.float32]]:
    def compute(segment: Segment) -> NDArray[np.float32]:
        if segment.path in bad:
            raise DataError(f"{segment.path}: is bad")
        return features(segment)

    return compute


@pytest.mark.parametrize(("count", "listed"), [(1, 1), (20, 20), (21, 20), (25, 20)])
def test_all_unreadable_clips_are_listed(
    count: int, listed: int, root: Path, tmp_path: Path
) -> None:
    segments = write_clips(tmp_path / "clips", 30)
    bad = [segment.path for segment in segments[-count:]]
    with pytest.raises(DataError) as caught:
        feature_cache(root, segments, SETTINGS, WIDTH, _refusing(set(bad)))
    head, *lines = str(caught.value).splitlines()
    assert head == f"{count} of 30 clips cannot be used:"
    assert lines[:listed] == [f"  - {path}: is bad" for path in bad[:20]]
    assert lines[listed:] == ([f"  ... and {count - 20} more"] if count > 20 else [])
    assert left_overs(root) == []
    check(feature_cache(root, segments, SETTINGS, WIDTH, features), segments)


def test_unreadable_clips_of_equal_content_are_listed_each(root: Path, tmp_path: Path) -> None:
    segments = write_clips(tmp_path / "clips", 5)
    bad = [segment.path for segment in segments[1:4]]
    for path in bad:
        Path(path).write_bytes(b"")
    with pytest.raises(DataError, match="3 of 5 clips") as caught:
        feature_cache(root, segments, SETTINGS, WIDTH, _refusing(set(bad)))
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == [f"  - {path}" for path in bad]


def test_a_missing_file_is_named_and_may_come_later(root: Path, clips: list[Segment]) -> None:
    path = Path(clips[3].path)
    body = path.read_bytes()
    path.unlink()
    with pytest.raises(DataError, match="1 of 10 clips"):
        feature_cache(root, clips, SETTINGS, WIDTH, _refusing({str(path)}))
    path.write_bytes(body)
    check(feature_cache(root, clips, SETTINGS, WIDTH, features), clips)


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, KeyboardInterrupt, SystemExit])
def test_any_other_error_goes_through_and_nothing_is_left(
    error: type[BaseException], root: Path, clips: list[Segment]
) -> None:
    def compute(segment: Segment) -> NDArray[np.float32]:
        if segment == clips[5]:
            raise error("stop")
        return features(segment)

    with pytest.raises(error, match="stop"):
        feature_cache(root, clips, SETTINGS, WIDTH, compute)
    assert left_overs(root) == []
    check(feature_cache(root, clips, SETTINGS, WIDTH, features), clips)


# Disks


class FullDisk:
    """Wraps a file on a disk that is full after some bytes."""

    def __init__(self, file: object, capacity: int, code: int) -> None:
        self.file, self.capacity, self.code = file, capacity, code

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, rows: NDArray[np.float32]) -> int:
        """Write, or raise the error of a full disk."""
        self.capacity -= rows.nbytes
        if self.capacity < 0:
            raise OSError(self.code, os.strerror(self.code))
        return self.file.write(rows)


def _refuse_rows(patch: pytest.MonkeyPatch, capacity: int, code: int) -> None:
    def opener(path: Path, mode: str = "r") -> object:
        file = open(path, mode)  # noqa: SIM115
        return FullDisk(file, capacity, code) if Path(path).name == "rows.f32" else file

    patch.setattr(cache_module, "open", opener, raising=False)


@pytest.mark.parametrize("capacity", [0, 1000])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_nothing_is_left(
    code: int, capacity: int, root: Path, clips: list[Segment]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _refuse_rows(patch, capacity, code)
        with pytest.raises(DataError) as caught:
            feature_cache(root, clips, SETTINGS, WIDTH, features)
    message = str(caught.value)
    assert os.strerror(code) in message and str(root) in message
    assert "--cache_folder" in message and "free some space" in message
    assert left_overs(root) == []
    check(feature_cache(root, clips, SETTINGS, WIDTH, features), clips)


@pytest.mark.parametrize("name", ["index.json", "hashes"])
def test_a_disk_full_at_the_small_files(name: str, root: Path, clips: list[Segment]) -> None:
    write_text = Path.write_text

    def refuse(path: Path, *arguments: object, **options: object) -> int:
        if name in str(path.relative_to(root)):
            path.touch()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_text(path, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_text", refuse)
        with pytest.raises(DataError, match="--cache_folder"):
            feature_cache(root, clips, SETTINGS, WIDTH, features)
    files = [p for p in root.rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert files == (list((root / "hashes").iterdir()) if name == "index.json" else [])
    check(feature_cache(root, clips, SETTINGS, WIDTH, features), clips)


def test_a_cache_folder_that_is_a_file(tmp_path: Path, clips: list[Segment]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="--cache_folder"):
        feature_cache(tmp_path / "file", clips, SETTINGS, WIDTH, features)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_folder_without_permission(root: Path, clips: list[Segment]) -> None:
    root.mkdir(mode=0o500)
    with pytest.raises(DataError, match="--cache_folder"):
        feature_cache(root, clips, SETTINGS, WIDTH, features)


def test_other_system_errors_are_not_called_a_full_disk(root: Path, clips: list[Segment]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _refuse_rows(patch, 0, errno.EIO)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            feature_cache(root, clips, SETTINGS, WIDTH, features)
    assert left_overs(root) == []


# Memory


def test_released_pages_come_back(
    clips: list[Segment], built: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_rows, "RELEASE_BYTES", 100)
    held = built[0]
    for _ in range(3):
        check(built, clips)
    np.testing.assert_array_equal(held, features(clips[0]))


def _resident_file_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssFile:")[1].split()[0])


def test_reading_holds_no_more_than_its_share(
    root: Path, clips: list[Segment], monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, share = 250_000, 8 << 20  # 10 clips of 8 MB
    cache = feature_cache(
        root, clips, SETTINGS, WIDTH, lambda s: np.full((frames, WIDTH), 1, dtype=np.float32)
    )
    monkeypatch.setattr(mapped_rows, "RELEASE_BYTES", share)
    before, most = _resident_file_bytes(), 0
    for index in range(len(cache)):
        for begin in range(0, frames, 10_000):
            assert cache[index][begin : begin + 10_000].sum() == 10_000 * WIDTH
        most = max(most, _resident_file_bytes() - before)
    assert most < 4 * share
