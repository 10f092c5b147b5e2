"""Records of a run: stamps, log, report, profile, replay."""
