"""What every other package uses: errors, whole-file writes, clocks, slots."""
