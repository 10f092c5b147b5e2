"""From observations to commands: one module a policy."""
