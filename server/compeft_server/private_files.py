"""The aggregator's files: private ones checked, written ones durable, by `compeft_proto.durable_files`, which both sides share."""

from compeft_proto.durable_files import read_file, read_private, write_durably

__all__ = ["read_file", "read_private", "write_durably"]
