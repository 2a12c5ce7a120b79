"""No deadline for properties: the first example of a run may compile a kernel."""

from hypothesis import settings

settings.register_profile("core", deadline=None)
settings.load_profile("core")
