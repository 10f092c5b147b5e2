"""device.cu against the host kernel without a GPU: the C++ compiler builds it unchanged on emulated_cuda.h, which runs
its threads.

What it cannot show: what nvcc and a GPU make of the source (`benchmarks/preprocess_gpu.py` does, on one), and how fast
that is.
"""

import ctypes
import dataclasses
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.camera import Camera
from runtime.bundle import Bundle
from runtime.contracts import Observation
from runtime.engines.cuda import Cuda, CudaError
from runtime.policies.harmowam import FastStep, SlowStep
from runtime.preprocess import DTYPES, LAYOUTS, KernelError, Warp, build, cuda
from runtime.preprocess.cuda import DeviceWarp, GpuPass, Tuning, Windows
from tests.rig import START
from tests.runtime.test_preprocess import GEOMETRIES, camera
from tests.tiny import FRONT, TASK, WRIST, tiny_bundle

COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")  # as build.py
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is installed")

GUARD = 4096  # bytes before and behind every piece of memory: more than a row of any frame here
FILL = 0xCC

MAIN = """
#include "emulated_cuda.h"
{changes}
#include "device.cu"

extern "C" const char* emulate_warp_tiles(const emulated::Launch* how, const Plan* plans, const Frame* frames, const Job* jobs) {{
  return emulated::launch(*how, [=] {{ warp_tiles(plans, frames, jobs); }});
}}

extern "C" const char* emulate_warp_any(const emulated::Launch* how, const Pass* passes, const Frame* frames) {{
  return emulated::launch(*how, [=] {{ warp_any(passes, frames); }});
}}
"""


class EmulationError(Exception):
    """The kernel did something that a GPU does not allow."""


class _Launch(ctypes.Structure):
    """Mirrors `Launch` in emulated_cuda.h; `readable` holds pairs of address and size."""

    _fields_ = [
        *((n, ctypes.c_uint32) for n in ("grid_x", "grid_y", "threads", "shared_bytes")),
        ("readable", ctypes.c_void_p),
        ("ranges", ctypes.c_uint64),
    ]


class Driver:
    """`runtime.preprocess.drivers.Driver` for a library built by `compiled`, whose path is the image. The device's
    memory is ours.

    `readable`: address and size of what the kernel may copy from; a test can make it smaller.
    """

    def __init__(self, shared_limit: int = 163 * 1024) -> None:
        self.shared_limit = shared_limit
        self.readable: dict[int, int] = {}
        self._memory: dict[int, np.ndarray] = {}

    def function(self, image: bytes, name: str, shared: int) -> Any:
        function = ctypes.CDLL(image.decode())[f"emulate_{name}"]
        function.restype = ctypes.c_char_p
        return function

    def room(self, size: int) -> int:
        memory = np.full(size + 2 * GUARD + 16, FILL, np.uint8)
        start = GUARD + -memory.ctypes.data % 16
        address = memory.ctypes.data + start
        self.readable[address] = size
        self._memory[address] = memory
        return address

    def mapped(self, size: int) -> tuple[np.ndarray, int]:
        address = self.room(size)
        start = address - self._memory[address].ctypes.data
        return self._memory[address][start : start + size], address

    def use(self) -> None:
        self.used_by = threading.get_ident()

    def wait(self) -> None:
        self.launched = False

    def put(self, address: int, array: np.ndarray) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def launch(self, function: Any, arguments: Any, grid: Any, threads: int, shared: int, stream: Any) -> None:
        self.launched = True
        readable = np.array([*self.readable.items()], np.uint64)
        how = _Launch(*grid, threads, shared, readable.ctypes.data, len(readable))
        failure = function(ctypes.byref(how), *map(ctypes.c_void_p, arguments))
        if failure:
            raise EmulationError(failure.decode())
        for address, memory in self._memory.items():
            start = address - memory.ctypes.data
            size = len(memory) - 2 * GUARD - 16
            if (memory[:start] != FILL).any() or (memory[start + size :] != FILL).any():
                raise EmulationError("a write outside the results")


def compiled(folder: Path, changes: str = "", **macros: int) -> bytes:
    """device.cu as a library, as an image for `Driver`. `changes`: lines of C++ before it; `macros`: as in
    build.fatbin."""
    (folder / "cuda_pipeline.h").touch()  # emulated_cuda.h has what device.cu needs of it
    main, out = folder / "main.cpp", folder / "emulated.so"
    main.write_text(MAIN.format(changes=changes))
    assert COMPILER is not None
    command = [
        COMPILER,
        *(f for f in build.FLAGS if not f.startswith("-O")),
        "-O2",
        *(f"-DWARP_{k}={v}" for k, v in macros.items()),
        f"-I{folder}",
        f"-I{Path(__file__).parent}",
        f"-I{build.HERE}",
        str(main),
        "-o",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return str(out).encode()


def noise(device, seed=0):
    """Fill the frames, and what lies between their rows."""
    rng = np.random.default_rng(seed)
    for buffer in device._buffers:
        buffer[:] = rng.integers(0, 256, buffer.shape, np.uint8)


def launched(warps, image, *, driver=None, tuning=Tuning(), mapped=True):
    """A pass over frames of noise, on the emulator; fails unless every result is the host kernel's, byte for byte."""
    tuning = dataclasses.replace(tuning, image=image)
    device = DeviceWarp(warps, mapped=mapped, driver=driver or Driver(), tuning=tuning)
    noise(device)
    device.upload()
    device.launch()
    wanted = [warp(frame) for warp, frame in zip(warps, device.frames)]
    equal = [want.tobytes() == ctypes.string_at(at, want.nbytes) for want, at in zip(wanted, device.out)]
    assert all(equal), f"other pixels than the host's in frames {[k for k, same in enumerate(equal) if not same]}"
    return device


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("device"))


# The output looks past all edges of the picture: windows reach its last row and column.
SMALL = camera(66, 50, 60), camera(17, 13, 14)
NORMAL: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


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


# What the loops use.


def gpu_here():
    try:
        Cuda()
    except CudaError:
        return False
    return True


def pictures(warps, seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, warp._frame_shape, np.uint8) for warp in warps]


def test_the_loops_pass_gives_the_pixels_of_the_host_frame_after_frame(image):
    warps = [Warp(*SMALL, **NORMAL), Warp(camera(200, 150, 140), camera(24, 20, 17), layout="nv12", dtype="float16")]
    driver = Driver()
    made = GpuPass(warps, driver, Tuning(image=image))
    for seed in range(3):
        frames = pictures(warps, seed)
        for got, warp, frame in zip(made(frames), warps, frames, strict=True):
            assert got.dtype == warp.dtype and got.tobytes() == warp(frame).tobytes()
        assert not driver.launched, "results were taken before the GPU had finished"


def test_the_pass_makes_its_context_current_in_whatever_thread_calls_it(image):
    warps, driver = [Warp(*SMALL)], Driver()
    made = GpuPass(warps, driver, Tuning(image=image))
    seen = []
    thread = threading.Thread(target=lambda: seen.append((made(pictures(warps, 0)), threading.get_ident())))
    thread.start()
    thread.join()
    assert driver.used_by == seen[0][1] != threading.get_ident()


def test_a_gpu_that_makes_other_pixels_is_refused_at_the_first_frame(faulty):
    chosen = ctypes.c_int.in_dll(ctypes.CDLL(faulty.decode()), "fault")
    warps = [Warp(*SMALL)] * 3
    chosen.value = FAULTS.index("no barrier")
    try:
        with pytest.raises(
            KernelError,
            match=r"the GPU makes \d+ of 663 numbers of camera .* otherwise than the host: set .compute. preprocess",
        ):
            GpuPass(warps, Driver(), Tuning(image=faulty))(pictures(warps, 0))
    finally:
        chosen.value = 0


def test_a_frame_of_another_size_is_refused_before_anything_is_launched(image):
    driver = Driver()
    made = GpuPass([Warp(*SMALL)], driver, Tuning(image=image))
    driver.launched = False
    with pytest.raises(ValueError, match="set the camera to that resolution"):
        made([np.zeros((51, 66, 3), np.uint8)])
    assert not driver.launched


def test_a_gpu_that_fails_while_driving_says_so(image, monkeypatch):
    warps, driver = [Warp(*SMALL)], Driver()
    made = GpuPass(warps, driver, Tuning(image=image))

    def fail() -> None:
        raise CudaError("cuStreamSynchronize failed with CUDA error 719.")

    monkeypatch.setattr(driver, "wait", fail)
    with pytest.raises(
        KernelError, match=r"pre-processing on the GPU failed: cuStreamSynchronize .* Restart the program"
    ):
        made(pictures(warps, 0))


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_here(), reason="no GPU here")
def test_a_real_gpu_gives_the_pixels_of_the_host():
    warps = [Warp(*SMALL, layout=layout, **NORMAL) for layout in LAYOUTS]
    made = GpuPass(warps)
    for seed in range(3):
        frames = pictures(warps, seed)
        for got, warp, frame in zip(made(frames), warps, frames, strict=True):
            assert got.tobytes() == warp(frame).tobytes()


@pytest.mark.skipif(gpu_here(), reason="there is a GPU")
def test_without_a_gpu_the_pass_says_what_to_do():
    with pytest.raises(KernelError, match=r"cannot start: no CUDA driver .* Or set \[compute\] preprocess to \"cpu\""):
        GpuPass([Warp(*SMALL)])


def test_both_steps_decide_the_same_with_either_pass(image, tmp_path, monkeypatch):
    library = tmp_path / "image"
    library.write_bytes(image)
    monkeypatch.setattr(cuda, "Direct", Driver)
    monkeypatch.setattr(cuda, "fatbin", lambda: library)
    bundle = Bundle.load(tiny_bundle(tmp_path / "tiny"))
    cameras = {"front": Camera.from_json(FRONT), "wrist": Camera.from_json(WRIST)}
    rng = np.random.default_rng(0)
    frames = {n: rng.integers(0, 256, (c.height, c.width, 3), np.uint8) for n, c in cameras.items()}
    obs = Observation(10**9, frames, np.array(START, np.float32), np.zeros(6, np.float32), 1)
    found = []
    for gpu in (False, True):
        prior = SlowStep(bundle, TASK, cameras, gpu=gpu).step(10**9, obs)
        fast = FastStep(bundle, cameras, gpu=gpu)
        command, _ = fast.step(10**9, obs, prior)
        found.append((prior.tokens, prior.future, prior.chunk, command.q_rad, *fast.views(obs).values()))
    for host, device in zip(*found, strict=True):
        assert host.tobytes() == device.tobytes()


# What follows shows that the tests above would notice.

FAULTS = ("none", "no barrier", "waits for too little", "a lane leaves early")
FAULTY = """
extern "C" { int fault = 0; }
#define __syncthreads() (fault == 1 ? (void)0 : __syncthreads())
#define __pipeline_wait_prior(n) __pipeline_wait_prior((n) + (fault == 2))
#define __shfl_xor_sync(mask, value, distance) (fault == 3 && threadIdx.x == 3 ? 0u : __shfl_xor_sync(mask, value, distance))
"""


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
