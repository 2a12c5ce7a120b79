"""The bytes of an update; mirrors docs/format.md section by section."""
