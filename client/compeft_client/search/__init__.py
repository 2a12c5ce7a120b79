"""Tune and blend: settings found by the task metric."""
