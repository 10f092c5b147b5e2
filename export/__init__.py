"""Workstation side: models, data, training, INT8 export and its checks. The only package that imports torch."""
