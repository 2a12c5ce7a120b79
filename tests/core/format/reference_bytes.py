"""Bytes and varints for the second decoder, written from docs/format.md alone."""


class Malformed(ValueError):  # noqa: N818
    """The bytes break a rule of docs/format.md."""


def need(condition: bool, message: str) -> None:
    if not condition:
        raise Malformed(message)


class Bytes:
    def __init__(self, blob: bytes) -> None:
        self.rest = blob

    def take(self, count: int) -> bytes:
        need(count <= len(self.rest), "too short")
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def varint(self) -> int:
        octets = b""
        while not octets or octets[-1] & 0x80:
            octets += self.take(1)
            need(len(octets) <= 5, "varint of more than 5 bytes")
        need(len(octets) == 1 or octets[-1] != 0, "varint not minimal")
        value = sum((octet & 0x7F) << 7 * i for i, octet in enumerate(octets))
        need(value < 2**32, "varint too large")
        return value
