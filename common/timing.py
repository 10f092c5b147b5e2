"""Real-time priorities and time limits that more than one process must agree on: one table for all.

Priorities are SCHED_FIFO, 1 to 99; the higher one runs first. Limits of a single module stand in that module.
"""

from __future__ import annotations

# Motors first: a late tick moves the arm late. Then pictures, so that a loop that waits for them finds them; then the
# loops.
MOTOR_PRIORITY = 20
TRANSFER_PRIORITY = 12  # a simulated camera hands its picture over
CAMERA_PRIORITY = 11
FAST_PRIORITY = 10
LOG_PRIORITY = (
    8  # it holds Python's lock at times: nothing may keep it from giving it back but the loop that waits for it
)
SLOW_PRIORITY = 5
SIM_SERVO_PRIORITY, SIM_CAMERA_PRIORITY = 7, 6  # below the fast loop: simulated hardware takes what the loops leave

# How long a motor process may say nothing. The guard acts first, for it can still let the torque down.
GUARD_STALL_S = 0.25  # the guard stops the arm
MOTOR_SILENT_S = (
    0.6  # policy and front door give up: the guard has acted by now, and a tick of the release takes 0.11 s at most
)
MOTOR_SILENT_CALIBRATING_S = 1.0  # a calibration gives up; it looks for boards in between, which takes a while

COMMAND_LIFE_S = 0.075  # of a policy's command beyond the tick that it applies to: seven motor ticks
