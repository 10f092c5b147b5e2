"""Jobs of an evaluation, and rows that were never played."""

import json

from sim import evaluate as ev


def jobs(bundle, policies=("gated",), environments=("seen",), count=2, tasks=("plate",), **more):
    return ev.jobs_for(bundle, policies, environments, tasks, range(count), **more)


def write_rows(path, jobs, won):
    lines = []
    for j in jobs:
        success = bool(won(j))
        lines.append(
            json.dumps(
                {
                    "key": j.key,
                    "policy": j.policy,
                    "environment": j.environment,
                    "task": j.task,
                    "seed": j.seed,
                    "split": j.split,
                    "start": j.start,
                    "success": success,
                    "transit": True,
                    "seconds": 5.0,
                    "switches": 2,
                    "failure": "" if success else "placed it badly",
                    "gate_right": 97,
                    "gate_frames": 100,
                }
            )
        )
    path.write_text("\n".join(lines) + "\n")
