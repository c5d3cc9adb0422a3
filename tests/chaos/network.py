"""The network between the router and its expert services, made to misbehave.

A process of its own: it must stay quick while the test's clients are busy. It
has a port for each service; its parent tells it over stdin, a line at a time,
what to do with one of them:

  INDEX forward        back to normal; what was held back is delivered
  INDEX hole           takes connections and bytes, and forwards none
  INDEX delay SECONDS  forwards later
  INDEX reset          resets the open connections; new ones are forwarded
  INDEX refuse         resets the open connections, and new ones
  INDEX garbage        connects to a service that answers nonsense
  INDEX nan            connects to one that answers values that are not finite
  INDEX state HEX      what these announce: an EndpointState

Each is answered by a line once done. The first line written names the ports.
"""

import asyncio
import collections
import random
import socket
import struct
import sys

import garbage_service


def reset(transport):
    """Ends the connection without a farewell."""
    if transport.is_closing():
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                              struct.pack("ii", 1, 0))
    transport.abort()


class Side(asyncio.Protocol):
    """One end of a forwarded connection."""

    def __init__(self, link, to=None):
        self.link = link
        self.to = to  # the other end
        self.transport = None
        self.early = []  # what came before the other end was there
        self.late = collections.deque()

    def connection_made(self, transport):
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.link.add(self)

    def data_received(self, data):
        if self.to is None:
            self.early.append(data)
        elif self.link.delay or self.late:
            # One timer for each piece; each timer delivers the oldest.
            self.late.append(data)
            asyncio.get_running_loop().call_later(self.link.delay,
                                                  self.deliver)
        else:
            self.to.write(data)

    def write(self, data):
        if not self.transport.is_closing():
            self.transport.write(data)

    def deliver(self):
        if self.late:
            self.to.write(self.late.popleft())

    def connect(self, other):
        self.to, other.to = other, self
        for data in self.early:
            other.write(data)
        self.early.clear()

    def connection_lost(self, error):
        self.link.sides.discard(self)
        if self.to is None:
            return
        if error is not None:
            reset(self.to.transport)
        else:  # after what it still said
            asyncio.get_running_loop().call_later(self.link.delay,
                                                  self.to.transport.close)


class Link:
    """One service's port."""

    def __init__(self, address, seed):
        self.real = address
        self.target = address
        self.sides = set()
        self.delay = 0.0
        self.is_hole = False
        self.refuses = False
        self.garbage = garbage_service.GarbageService(random.Random(seed))

    async def listen(self):
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Client(self),
                                          self.real[0], 0)
        return server.sockets[0].getsockname()[1]

    def add(self, side):
        self.sides.add(side)
        if self.is_hole:
            side.transport.pause_reading()

    def reset(self):
        for side in list(self.sides):
            reset(side.transport)

    def set(self, mode, argument=None):
        if mode == "state":
            self.garbage.state = bytes.fromhex(argument)
            return
        was_garbage = self.target != self.real
        self.delay = float(argument) if mode == "delay" else 0.0
        self.refuses = mode == "refuse"
        is_garbage = mode in ("garbage", "nan")
        self.garbage.kinds = garbage_service.NOT_FINITE if mode == "nan" \
            else garbage_service.NONSENSE
        self.target = self.garbage.address if is_garbage else self.real
        if was_garbage or is_garbage or mode in ("reset", "refuse"):
            self.reset()
        self.is_hole = mode == "hole"
        for side in self.sides:
            if self.is_hole:
                side.transport.pause_reading()
            else:
                side.transport.resume_reading()


class Client(Side):
    """The router's end, which asks for another one."""

    def connection_made(self, transport):
        super().connection_made(transport)
        if self.link.refuses:
            reset(transport)
        else:
            self.connecting = asyncio.ensure_future(self.connect_on())

    async def connect_on(self):
        loop = asyncio.get_running_loop()
        try:
            _, other = await loop.create_connection(
                lambda: Side(self.link), *self.link.target)
        except OSError:
            reset(self.transport)
            return
        if self.transport.is_closing():
            reset(other.transport)
        else:
            self.connect(other)


async def serve(addresses, seed):
    links = [Link((host, int(port)), seed + i) for i, (host, port) in
             enumerate(a.rsplit(":", 1) for a in addresses)]
    ports = [await link.listen() for link in links]
    print(*(f"{link.real[0]}:{port}" for link, port in zip(links, ports)),
          flush=True)
    orders = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        index, *order = line.decode().split()
        links[int(index)].set(*order)
        print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[2:], int(sys.argv[1])))
