"""What every package stands on: errors, whole-file writes, clocks, slots."""
