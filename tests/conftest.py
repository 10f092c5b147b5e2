"""What every test shares: nothing but how hypothesis behaves on a busy machine."""

import os

import hypothesis

os.environ.setdefault("MUJOCO_GL", "egl")  # before anything imports mujoco

hypothesis.settings.register_profile("shared", deadline=None)  # the time an example takes says more about the machine
hypothesis.settings.load_profile("shared")
