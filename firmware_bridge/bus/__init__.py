"""The serial port and the master that asks servos over it."""
