"""The client's files: read with typed errors, written durably. All of it is `compeft_proto.durable_files`, which both sides share."""

from compeft_proto.durable_files import read_file, read_private, write_durably, written_whole

__all__ = ["read_file", "read_private", "write_durably", "written_whole"]
