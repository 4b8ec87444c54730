"""Build-time helpers that setup.py and the CUDA report share; not installed."""
