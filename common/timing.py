"""Real-time priorities and time limits on which several processes must agree, in one table.

Priorities are SCHED_FIFO, 1 to 99; the higher one runs first. A limit of a single module is in that module.
"""

from __future__ import annotations

# Motors first: a late tick moves the arm late. Then pictures, so that a loop that waits for them finds them. Then the
# loops.
MOTOR_PRIORITY = 20
TRANSFER_PRIORITY = 12  # a simulated camera hands over its picture
CAMERA_PRIORITY = 11
FAST_PRIORITY = 10
LOG_PRIORITY = 8  # it holds Python's lock at times: only the loop that waits for the lock may keep it from returning it
SLOW_PRIORITY = 5
SIM_SERVO_PRIORITY, SIM_CAMERA_PRIORITY = 7, 6  # below the fast loop: simulated hardware uses what the loops leave over

# How long a motor process may be silent. The guard acts first, because it can still lower the torque.
GUARD_STALL_S = 0.25  # the guard stops the arm
MOTOR_SILENT_S = (
    0.6  # policy and command line give up: the guard has acted by then, and a tick of the release takes 0.11 s at most
)
# a calibration gives up; it looks for boards between its messages, which takes a while
MOTOR_SILENT_CALIBRATING_S = 1.0

COMMAND_LIFE_S = 0.075  # validity of a policy's command beyond its tick: seven motor ticks
