"""What every test shares: nothing but how hypothesis behaves on a busy machine."""

import os

import hypothesis

os.environ.setdefault("MUJOCO_GL", "egl")  # before anything imports mujoco

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("shared", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("shared")
