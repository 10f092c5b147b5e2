"""A log in Rerun: pictures, joints, gate and health on one time line. Only this module needs the extra `view`."""

from __future__ import annotations

from pathlib import Path

from firmware_bridge.motion.messages import Command, JointState
from runtime.observe.log_reader import read_log, read_meta
from runtime.observe.records import CUT, DAMAGED, FrameRecord, PriorRecord, TickRecord


def view(log: Path) -> None:
    """Open the viewer on `log`. Raises LogError when it cannot be read, ModuleNotFoundError without rerun-sdk."""
    import rerun as rr

    meta = read_meta(log)
    rr.init(f"harmowam {meta['task']}", spawn=True)

    def at(t_ns: int) -> None:
        rr.set_time("monotonic", duration=t_ns * 1e-9)

    for record in read_log(log):
        if isinstance(record, FrameRecord):
            at(record.t_capture_ns)
            rr.log(f"camera/{record.camera}", rr.Image(record.image))
        elif isinstance(record, TickRecord) and record.command:
            at(record.t_ns)
            command = Command.unpack(record.command)
            rr.log("gate", rr.Scalars([command.gate]))
            rr.log("command/raw", rr.Scalars(command.q_rad.tolist()))
            rr.log("target/sent", rr.Points3D([record.targets[2, :3]]))
        elif isinstance(record, PriorRecord):
            at(record.t_ready_ns)
            rr.log("prior/chunk", rr.LineStrips3D([record.chunk[:, :3]]))
        elif isinstance(record, JointState):
            at(record.t_ns)
            rr.log("command/limited", rr.Scalars(record.goal_rad.tolist()))
            rr.log("joints/measured", rr.Scalars(record.q_rad.tolist()))
        elif isinstance(record, dict) and record.get("kind") == "health":
            at(record["t_ns"])
            rr.log("health", rr.TextLog(f"{record['state']}: {'; '.join(record['reasons'])}"))
        elif isinstance(record, dict) and record.get("kind") in (CUT, DAMAGED):
            rr.log("health", rr.TextLog(f"the log is {record['kind']} here: {record['why']}"))
