"""Servo models: register tables, and which codec each speaks."""
