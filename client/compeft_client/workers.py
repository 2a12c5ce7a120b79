"""The number of threads that the client's loops over parameters use."""

import os

WORKERS = min(8, os.cpu_count() or 1)
"""Threads that the work on one vector is spread over."""
