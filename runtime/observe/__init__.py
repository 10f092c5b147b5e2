"""What is kept of a run: stamps, log, recording, report, profile, replay."""
