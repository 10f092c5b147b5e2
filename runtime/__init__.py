"""On-robot runtime: bundle, engines, pre-processing, slow and fast step, two-rate loop, trace, recorded runs."""
