"""A Flower grid that carries letters: for clients that reach Flower's SuperLink and not the aggregator (docs/protocol.md, "Relay").

It stands between the strategy, which knows nothing of letters, and Flower. A task goes out with the aggregator's answer to the client's own
signed request; a client whose request is not here yet is asked for it first. An update comes back in the reply, with the next
request. What is carried is signed and encrypted end to end: nothing here can read, make or alter it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from logging import WARNING

from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.common.logger import log
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from compeft_core.errors import CompeftError, FormatError
from compeft_proto import relay_letter as letters
from compeft_proto.errors import TransferError
from compeft_proto.round_task import RECORD
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.flower.conductor import Conductor
from compeft_server.flower.grid import GridAround, gather


@dataclass(frozen=True, slots=True)
class _Sent:
    """A message that is under way: the id that the strategy knows it by, and what waits for the answer if that is a request."""

    known_as: str
    waiting: Message | None = None


class RelayGrid(GridAround):
    """As `inner`, for messages with a task; `conductor` reaches the aggregator. All messages of a run go through one such grid."""

    def __init__(self, inner: Grid, conductor: Conductor) -> None:
        super().__init__(inner)
        self._conductor = conductor
        self._requests: dict[int, Envelope] = {}
        """By node: a request of its client that has not been used."""
        self._sent: dict[str, _Sent] = {}
        """By the id of a message that is under way."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Each message with an answer, or a question for a request in its place; the ids that their answers will come under."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Answers to these messages. The updates of others that come late are handed in too."""
        awaited = set(message_ids)
        if not self._sent:
            return []
        came = [(self._sent.pop(m.metadata.reply_to_message_id), m) for m in self._inner.pull_messages(list(self._sent))]
        came.sort(key=lambda pair: pair[0].waiting is not None)  # an update is in before its client asks again
        answers = [answer for sent, reply in came if (answer := self._received(sent, reply, awaited)) is not None]
        return [answer for answer in answers if answer.metadata.reply_to_message_id in awaited]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, and pull until all have answered or the time is over."""
        return gather(self, messages, None, timeout)

    def _push(self, message: Message) -> str:
        """Send a message with its answer or, where it is missing, a question; its id."""
        if RECORD not in message.content.config_records:
            return self._out(message)
        answer = self._answer(message.metadata.dst_node_id)
        if answer is None:
            return self._out(_with_letter(message, xp.Letter(), [RECORD]), message)
        return self._out(_with_letter(message, answer, list(message.content)))

    def _answer(self, node: int) -> xp.Letter | None:
        """The aggregator's answer to a request that is here; None if it is missing or refused: it may be too old."""
        request = self._requests.pop(node, None)
        try:
            return None if request is None else self._carried(request)
        except CompeftError as error:
            log(WARNING, "the request of node %s was refused (%s), another is asked for: %s", node, error.code, error)
            return None

    def _out(self, message: Message, waiting: Message | None = None, known_as: str = "") -> str:
        for number in self._inner.push_messages([message]):
            if number:
                self._sent[number] = _Sent(known_as or number, waiting)
                return known_as or number
        return ""

    def _carried(self, request: Envelope) -> xp.Letter:
        return xp.Letter(request=request, answer=self._conductor.carry_request(request))

    def _received(self, sent: _Sent, reply: Message, awaited: set[str]) -> Message | None:
        """What the strategy gets of a reply, under the id that it knows; None if it has to wait."""
        reply.metadata.__dict__["_reply_to_message_id"] = sent.known_as  # Flower's metadata has no setter for it
        if reply.has_error():
            return reply
        try:
            letter = _letter_of(reply.content)
            if letter.HasField("request"):
                self._requests[reply.metadata.src_node_id] = letter.request
            if letter.update:
                self._conductor.carry_update(letter)
            if sent.waiting is None or sent.known_as not in awaited:
                return reply
            self._send_waiting(sent, sent.waiting)
        except CompeftError as error:
            log(WARNING, "what node %s sent was refused (%s): %s", reply.metadata.src_node_id, error.code, error)
            return make_message(reply.metadata, error=Error(ErrorCode.UNKNOWN, f"{error.code}: {error}"))
        return None

    def _send_waiting(self, sent: _Sent, message: Message) -> None:
        node = message.metadata.dst_node_id
        if node not in self._requests:
            raise FormatError(f"node {node} answered without a request: is its compeft older than Plan(relay=True)?")
        answer = self._carried(self._requests.pop(node))
        if not self._out(_with_letter(message, answer, list(message.content)), known_as=sent.known_as):
            raise TransferError(f"Flower's SuperLink did not take the message for node {node}")


def _with_letter(message: Message, letter: xp.Letter, records: list[str]) -> Message:
    """A message with these of its records, and a letter."""
    content, data = RecordDict({name: message.content[name] for name in records}), letter.SerializeToString()
    content[letters.RECORD] = ArrayRecord({letters.RECORD: Array("uint8", (len(data),), letters.KIND, data)})
    meta = message.metadata
    return Message(content, meta.dst_node_id, meta.message_type, ttl=meta.ttl, group_id=meta.group_id)


def _letter_of(content: RecordDict) -> xp.Letter:
    """The letter of a reply, taken out of it; an empty one if absent. Errors: FormatError."""
    record = content.array_records.get(letters.RECORD)
    if record is None:
        return xp.Letter()
    del content[letters.RECORD]
    try:
        return xp.Letter.FromString(next(iter(record.values())).data)
    except (StopIteration, DecodeError) as error:
        raise FormatError("the reply's letter is invalid") from error
