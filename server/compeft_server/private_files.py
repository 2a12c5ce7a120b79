"""The aggregator's files: private ones are checked, written ones durable. All of it is `compeft_proto.durable_files`, which both sides share."""

from compeft_proto.durable_files import read_file, read_private, write_durably

__all__ = ["read_file", "read_private", "write_durably"]
