"""The loops' pass on the GPU (`preprocess = "gpu"`), on an emulated GPU and, where there is one, on a real one."""

import ctypes
import threading

import numpy as np
import pytest

from calibration.camera import Camera
from runtime.bundle import Bundle
from runtime.contracts import Observation
from runtime.engines.cuda import Cuda, CudaError
from runtime.policies.harmowam import FastStep, SlowStep
from runtime.preprocess import LAYOUTS, KernelError, Warp, cuda
from runtime.preprocess.cuda import GpuPass, Tuning
from tests.rig import START
from tests.runtime.emulated_device import COMPILER, FAULTS, FAULTY, NORMAL, SMALL, Driver, compiled
from tests.runtime.warps import camera
from tests.tiny import FRONT, TASK, WRIST, tiny_bundle

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is installed")


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("device"))


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


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("faulty"), FAULTY)
