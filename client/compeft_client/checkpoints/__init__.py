"""Weights on disk: safetensors, PEFT directories, initial values, base-model digest; reads headers before values."""
