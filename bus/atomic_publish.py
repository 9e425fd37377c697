"""Many messages into one stream at once, all or none, with one write to the disk."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import count
from uuid import uuid4

from bus import BatchMessage, BusError, PubAck, headers, jsapi
from bus.jsapi import ApiError
from bus.management import ANSWER_WITHIN
from bus.request_reply import Requests


async def publish_batch(
    requests: Requests, messages: Sequence[BatchMessage]
) -> list[PubAck] | None:
    """Store all or none; None: one of them was a repeat, or outdated, or refused, or no word came."""
    batch = {headers.BATCH_ID: uuid4().hex}
    last = len(messages)
    with ExitStack() as awaited:
        answers = []
        for number, message in enumerate(messages, 1):
            fields = message.fields() | batch
            fields[headers.BATCH_SEQUENCE] = str(number)
            if number == last:
                fields[headers.BATCH_COMMIT] = "1"
            reply = ""
            if number in (1, last):
                # The first is answered when the batch is open, the last when it is stored.
                reply, answer = awaited.enter_context(
                    requests.asking(message.subject, ANSWER_WITHIN)
                )
                answers.append(answer)
            try:
                requests.connection.post(message.subject, message.data, fields, reply)
            except BusError:
                return None
        try:
            opened, committed = [await answer for answer in answers]
            if opened[1] or committed[1] or (opened[0].data and jsapi.read(opened[0].data)):
                return None
            ack = jsapi.ack(committed[0].data)
        except (ApiError, BusError, TimeoutError):
            return None
    places = count(ack.sequence - last + 1)
    return [PubAck(ack.stream, place) for _, place in zip(messages, places, strict=False)]
