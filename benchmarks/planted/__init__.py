"""Verdicts against planted truth: precision, recall and power of every method, on worlds of known features.

Run: `python -m benchmarks.planted all --cache FOLDER [--jobs 2]`, or its steps `train`, `measure`,
`calibrate` (thresholds, from seeds 0 to 4 alone) and `score` (seeds and settings never used for calibration),
which keep what they made in the cache. Figures go to `benchmarks/results/planted.json`.
"""
