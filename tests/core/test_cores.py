"""One budget of cores for decode threads and torch."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from clip_embed._engine import cores as _cores
from clip_embed._engine.cores import limit_torch, torch_threads, usable_cores


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "250000 100000\n"}, 2.5),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_container(
    files: dict[str, str], expected: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both versions of cgroups are read, none is needed; at least one core, at most those there are."""
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert _cores._cgroup_quota(tmp_path) == expected
    monkeypatch.setattr(_cores, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert usable_cores() == (16 if expected is None else max(1, int(expected)))


def test_torch_is_limited_in_one_thread_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the thread that started it nor a thread that starts later is changed."""
    before = torch.get_num_threads()
    wide = before + 3
    try:
        torch.set_num_threads(wide)
        with ThreadPoolExecutor(2, initializer=limit_torch, initargs=(1,)) as pool:
            both = threading.Barrier(2)

            def ask(_: int) -> int:
                both.wait(20)
                return torch.get_num_threads()

            assert list(pool.map(ask, range(2))) == [1, 1]
            assert torch.get_num_threads() == wide
            with ThreadPoolExecutor(1) as other:
                assert other.submit(torch.get_num_threads).result() == wide
    finally:
        torch.set_num_threads(before)


def test_what_the_user_gave_torch_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer threads than cores stay as they are; more are cut to the cores."""
    monkeypatch.setattr(_cores, "usable_cores", lambda: 4)
    for given, expected in ((3, 3), (9, 4)):
        monkeypatch.setattr(torch, "get_num_threads", lambda given=given: given)
        assert torch_threads() == expected
