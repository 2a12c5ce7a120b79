"""Settings for all tests: Hypothesis draws the same cases every time, and no case fails for being slow on a busy machine."""

from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("steady")
