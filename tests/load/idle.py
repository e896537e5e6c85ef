"""Holds many streams open, over some tens of HTTP/2 connections with client certificates. Usage: python idle.py ADDRESS STREAMS
PER_CONNECTION CA CERTIFICATE KEY. Each is an answer that begins and then says nothing more.

Prints one line of JSON when each stream has begun or has failed, and another when its standard input ends: how many are open, and
what became of the others.
"""

import asyncio
import collections
import json
import ssl
import sys

import h2.config
import h2.connection
import h2.events
import h2.exceptions

QUESTION = {"role": "user", "content": "Count to a hundred, slowly."}
BODY = json.dumps({"model": "chat", "stream": True, "messages": [QUESTION]}).encode()
# Requests that wait for the beginning of their answer, on one connection: more would measure a queue.
AT_A_TIME = 16
# For all streams to begin.
WITHIN_S = 120


class Connection(asyncio.Protocol):
    """Opens its streams by and by; `states` has what became of each."""

    def __init__(self, authority, count):
        self.authority, self.count, self.sent = authority, count, 0
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, validate_inbound_headers=False))
        self.states = {}
        self.complete = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.http.initiate_connection()
        self.open_more()

    def open_more(self):
        waiting = sum(1 for state in self.states.values() if state == "waiting") if self.sent < self.count else 0
        most = self.http.remote_settings.max_concurrent_streams
        while self.sent < self.count and waiting < AT_A_TIME and self.http.open_outbound_streams < most:
            stream = self.http.get_next_available_stream_id()
            headers = [(":method", "POST"), (":scheme", "https"), (":authority", self.authority), (":path", "/v1/chat/completions"),
                       ("content-type", "application/json"), ("content-length", str(len(BODY)))]
            self.http.send_headers(stream, headers)
            self.http.send_data(stream, BODY, end_stream=True)
            self.states[stream] = "waiting"
            self.sent += 1
            waiting += 1
        self.transport.write(self.http.data_to_send())
        begun = self.sent == self.count and "waiting" not in self.states.values()
        if begun and not self.complete.done():
            self.complete.set_result(None)

    def data_received(self, data):
        try:
            events = self.http.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            return self.connection_lost(error)
        for event in events:
            if isinstance(event, h2.events.ResponseReceived):
                status = dict(event.headers).get(b":status", b"?").decode()
                if status != "200":
                    self.states[event.stream_id] = f"status {status}"
            elif isinstance(event, h2.events.DataReceived):
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                # A comment only keeps the connection alive: the gateway is still waiting for the cloud itself.
                if self.states[event.stream_id] == "waiting" and b"data:" in event.data:
                    self.states[event.stream_id] = "open"
            elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
                if self.states[event.stream_id] in ("waiting", "open"):
                    self.states[event.stream_id] = "ended"
        self.open_more()

    def connection_lost(self, error):
        lost = f"connection lost ({error})" if error else "connection closed"
        for stream, state in self.states.items():
            if state in ("waiting", "open"):
                self.states[stream] = lost
        if not self.complete.done():
            self.complete.set_result(None)


def report(connections, asked):
    states = collections.Counter(state for connection in connections for state in connection.states.values())
    states["not asked for yet"] = asked - sum(states.values())
    print(json.dumps({"open": states.pop("open", 0), "others": +states}), flush=True)


async def main():
    address, count, per_connection = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    host, port = address.rsplit(":", 1)
    tls = ssl.create_default_context(cafile=sys.argv[4])
    tls.load_cert_chain(sys.argv[5], sys.argv[6])
    tls.set_alpn_protocols(["h2"])
    loop = asyncio.get_running_loop()
    connections = []
    for first in range(0, count, per_connection):
        own = min(per_connection, count - first)
        _, connection = await loop.create_connection(lambda own=own: Connection(address, own), host, int(port), ssl=tls)
        connections.append(connection)
    await asyncio.wait([connection.complete for connection in connections], timeout=WITHIN_S)
    report(connections, count)
    await loop.run_in_executor(None, sys.stdin.read)
    report(connections, count)


asyncio.run(main())
