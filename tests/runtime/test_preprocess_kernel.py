"""The pre-processing kernel as it is built: for this processor with and without vectors, and for the GPU."""

import shutil

import numpy as np
import pytest

from runtime.preprocess import KernelError, Warp, build
from runtime.preprocess.cuda import Tiling, Windows
from tests.runtime.warps import GEOMETRIES, picture


@pytest.mark.parametrize("layout", ["rgb", "bgr"])
@pytest.mark.parametrize("case", GEOMETRIES)
def test_the_vector_pass_gives_the_scalar_pass_bit_for_bit(case, layout):
    src, dst = GEOMETRIES[case]
    img = picture(src.height, src.width, 5)
    for dtype in ("float32", "uint8"):
        warp = Warp(src, dst, layout=layout, dtype=dtype)
        assert (warp._pass.packed is None) == (case in ("magnified", "tiny"))  # those two always take the scalar pass
        vector = warp(img)
        warp._pass.packed = None
        assert np.array_equal(vector, warp(img))


def test_without_a_compiler_the_error_names_the_package(tmp_path, monkeypatch):
    for name in (*build.SOURCES, *build.DEVICE_SOURCES):
        shutil.copy(build.HERE / name, tmp_path / name)
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(KernelError, match="apt-get install g\\+\\+"):
        build.library()


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler is installed")
@pytest.mark.parametrize("damage", [b"", b"cut", b"flip"])
def test_a_kernel_that_was_not_kept_whole_is_compiled_again(tmp_path, monkeypatch, damage):
    """A power cut leaves an empty or short file, which ends the program with SIGBUS when it is loaded."""
    for name in (*build.SOURCES, *build.DEVICE_SOURCES):
        shutil.copy(build.HERE / name, tmp_path / name)
    monkeypatch.setattr(build, "HERE", tmp_path)
    made = build.library()
    compiled = made.read_bytes()
    flipped = bytes([*compiled[:2000], compiled[2000] ^ 4, *compiled[2001:]])
    made.write_bytes({b"": b"", b"cut": compiled[:5000], b"flip": flipped}[damage])
    assert not build.whole(made)
    assert build.library() == made and made.read_bytes() == compiled and build.whole(made)


@pytest.mark.skipif(build.nvcc() is None, reason="nvcc is not installed")
def test_the_device_build_compiles_for_orin_and_hopper(tmp_path, monkeypatch):
    fat = build.fatbin(folder=tmp_path)
    assert fat.stat().st_size > 10_000 and build.fatbin(folder=tmp_path) == fat
    raw = fat.read_bytes()
    assert b"sm_87" in raw and b"sm_90" in raw and b"warp_tiles" in raw and b"warp_any" in raw


@pytest.mark.parametrize(
    ("case", "layout"),
    [
        pytest.param(case, layout, id=f"{case}-{layout}")
        for case, (src, _) in GEOMETRIES.items()
        for layout in ("rgb", *(() if src.width % 2 or src.height % 2 else ("yuyv", "nv12")))  # YUV: even sizes only
    ],
)
def test_windows_for_the_device_weigh_the_same_pixels_and_lie_in_what_a_block_stages(case, layout):
    src, dst = GEOMETRIES[case]
    warp = Warp(src, dst, layout=layout)
    windows = Windows.of(warp)
    n, pairs, groups = windows.weights.shape[:3]
    flat = windows.weights.transpose(0, 1, 4, 2, 3).reshape(n, 2 * pairs, 4 * groups)
    k, y, x = np.nonzero(flat)
    y, x, kw = y + windows.corner[k, 1], x + windows.corner[k, 0], warp.window[0]
    want_k, want_at = np.nonzero(warp.weights)
    origin = warp._table.origin[want_k]
    assert np.array_equal(k, want_k) and np.array_equal(flat[flat > 0], warp.weights[warp.weights > 0])
    assert np.array_equal(x, origin[:, 0] + want_at % kw) and np.array_equal(y, origin[:, 1] + want_at // kw)
    unit, rows_of_pair = {"yuyv": (8, 2), "nv12": (4, 3)}.get(layout, (12, 2))
    for tile in ((16, 4), (8, 1)):
        t = Tiling.of(warp, windows, tile)
        row, byte = np.divmod(t.offset.astype(int), 16 * t.chunks)
        assert (row + rows_of_pair * pairs <= t.rows).all() and (byte + unit * groups <= 16 * t.chunks).all()
        assert (
            (byte % (8 if layout == "yuyv" else 4) == 0).all() and (t.box[:, 0] % 16 == 0).all() and (t.box >= 0).all()
        )
        assert t.pitch % 16 == 0 and t.pitch >= warp._row and (t.box[:, 0] + 16 * t.chunks <= t.pitch).all()
        v, u = np.divmod(k, dst.width)
        box = t.box[v // tile[1] * -(-dst.width // tile[0]) + u // tile[0]]
        assert np.array_equal(box[:, 0] + byte[k], windows.corner[k, 0] // 4 * unit)
        assert np.array_equal(box[:, 1] + row[k] * 2 // rows_of_pair, windows.corner[k, 1])
