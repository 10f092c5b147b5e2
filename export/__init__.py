"""Workstation side: models, data, training, INT8 export, parity. The only room that imports torch."""
