"""Build-time helpers that setup.py, CMake and the tests share; not installed."""
