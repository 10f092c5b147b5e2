"""Servo models: register tables, and the codec of each model."""
