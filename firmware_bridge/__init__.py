"""Servo protocols, the port, the arm in radians, safety, the motor process and the virtual bus."""
