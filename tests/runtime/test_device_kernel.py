"""device.cu against the host kernel without a GPU, on `tests.runtime.emulated_device`.

What these tests cannot show: what nvcc and a GPU make of the source (`benchmarks/preprocess_gpu.py` does, on one), and
how fast that is.
"""

import ctypes
import dataclasses

import numpy as np
import pytest

from runtime.preprocess import DTYPES, LAYOUTS, Warp
from runtime.preprocess.cuda import DeviceWarp, Tuning, Windows
from tests.runtime.emulated_device import (
    COMPILER,
    FAULTS,
    FAULTY,
    NORMAL,
    SMALL,
    Driver,
    EmulationError,
    compiled,
    launched,
)
from tests.runtime.warps import GEOMETRIES, camera

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is installed")


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("device"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout_and_type_gives_the_pixels_of_the_host_bit_for_bit(image, layout, dtype):
    device = launched([Warp(*SMALL, layout=layout, dtype=dtype, step=0.0173, **NORMAL)], image)
    assert device.tile == (16, 4)


@pytest.mark.parametrize("case", GEOMETRIES)
def test_every_geometry_gives_the_pixels_of_the_host_bit_for_bit(image, case):
    src, dst = GEOMETRIES[case]
    even = src.width % 2 == src.height % 2 == 0
    layouts = ("rgb", "yuyv", "nv12") if even else ("bgr",)
    assert launched([Warp(src, dst, layout=layout) for layout in layouts], image).tile


def test_several_cameras_with_more_frames_than_a_block_takes(image):
    many, few = Warp(*SMALL, layout="bgr"), Warp(*SMALL, layout="nv12", dtype="int8", step=0.02)
    other = Warp(camera(200, 150, 140), camera(24, 20, 17), layout="yuyv")
    one = Warp(*GEOMETRIES["tiny"], dtype="float16")
    device = launched([many, few, many, one, many, other, many, few, many], image, tuning=Tuning(frames=2))
    assert device._grid == (2 * 5, 3 + 1 + 1 + 1)  # tiles of the largest output; five frames take three blocks


@pytest.mark.parametrize("tile", [(8, 4), (8, 2), (8, 1), (4, 4), (1, 8)])
@pytest.mark.parametrize("layout", ["rgb", "yuyv", "nv12"])
def test_tiles_of_other_shapes(image, tile, layout):
    assert launched([Warp(*SMALL, layout=layout)] * 2, image, tuning=Tuning(tiles=(tile,))).tile == tile


@pytest.mark.parametrize("layout", ["rgb", "yuyv", "nv12"])
def test_windows_larger_than_a_lane_keeps_in_registers(image, layout):
    warp = Warp(camera(200, 150, 140), camera(18, 14, 9), layout=layout)
    pairs, groups = Windows.of(warp).weights.shape[1:3]
    assert pairs * groups > 4 * 7  # lanes times WARP_HELD
    assert launched([warp] * 3, image).tile


@pytest.mark.parametrize("layout", LAYOUTS)
def test_windows_too_large_for_shared_memory_take_the_plain_kernel(image, layout):
    wide = Warp(camera(640, 480, 350), camera(20, 11, 5), layout=layout)
    device = launched([wide, Warp(*SMALL, layout=layout), wide], image, driver=Driver(48 * 1024))
    assert device.tile is None and device._grid[0] == 2  # more output pixels than one block has threads


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_with_padding_up_to_the_end_of_the_frame(image, layout):
    """Frames end where readable memory ends: `launched` fails when a copy goes beyond, or when the noise between rows
    counts."""
    warp = Warp(*SMALL, layout=layout)
    device = launched([warp] * 3, image)
    assert device.frames[0].strides[0] > warp._row
    last = warp._table.origin.max(0) + warp.window
    assert warp.coverage < 1 and last.tolist() == [66, 50]


@pytest.mark.parametrize("layout", ["rgb", "yuyv", "nv12"])
def test_outputs_of_which_the_camera_sees_little_or_nothing(image, layout):
    src, dst = SMALL
    away = dataclasses.replace(src, K=np.array([[60, 0, -3000], [0, 60, 24.5], [0, 0, 1]]))
    part, nothing = Warp(src, camera(20, 20, 6), layout=layout), Warp(away, dst, layout=layout)
    assert 0 < part.coverage < 0.5 and nothing.coverage == 0
    launched([part, nothing], image)


def test_frames_that_are_copied_to_the_device(image):
    launched([Warp(*SMALL), Warp(*SMALL, layout="nv12")], image, mapped=False)


def test_other_constants_than_the_usual_ones(tmp_path):
    image = compiled(tmp_path, LANES=8, STAGES=3, HELD=2)
    tuning = Tuning(tiles=((8, 4),), frames=4, lanes=8, stages=3)
    launched([Warp(*SMALL, layout=layout) for layout in LAYOUTS for _ in range(5)], image, tuning=tuning)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("faulty"), FAULTY)


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("no barrier", AssertionError, "other pixels than the host's in frames"),
        ("waits for too little", AssertionError, "other pixels than the host's in frames"),
        ("a lane leaves early", EmulationError, "threads wait for others that never come"),
    ],
)
def test_a_fault_in_the_order_of_things_is_noticed(faulty, fault, error, words):
    chosen = ctypes.c_int.in_dll(ctypes.CDLL(faulty.decode()), "fault")
    warps = [Warp(*SMALL)] * 3
    launched(warps, faulty)
    chosen.value = FAULTS.index(fault)
    try:
        with pytest.raises(error, match=words):
            launched(warps, faulty)
    finally:
        chosen.value = 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_read_past_the_end_of_a_frame_is_noticed(image, layout):
    driver = Driver()
    device = DeviceWarp([Warp(*SMALL, layout=layout)], driver=driver, tuning=Tuning(image=image))
    device.launch()
    driver.readable[device.sources[0]] -= 1
    with pytest.raises(EmulationError, match="a copy from outside the frames"):
        device.launch()


def test_a_frame_that_does_not_start_at_a_multiple_of_16_bytes_is_noticed(image, monkeypatch):
    driver = Driver()
    array, address = driver.mapped(10_000)
    monkeypatch.setattr(driver, "mapped", lambda size: (array[4 : 4 + size], address + 4))
    with pytest.raises(EmulationError, match="a copy that is not aligned"):
        DeviceWarp([Warp(*SMALL)], driver=driver, tuning=Tuning(image=image)).launch()


def test_a_write_past_the_end_of_the_results_is_noticed(image):
    warp = Warp(*SMALL)
    warp._out_shape = (2, 13, 17)
    with pytest.raises(EmulationError, match="a write outside the results"):
        DeviceWarp([warp], driver=Driver(), tuning=Tuning(image=image)).launch()
