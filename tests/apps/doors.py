"""Opens sockets, says so by a line on standard output, and waits.

Usage: doors.py SOCKET..., where SOCKET is tcp:IP:PORT, mptcp:IP:PORT, udp:IP:PORT, unix:PATH, or dev:INTERFACE:IP:PORT
for a TCP listener that is bound to an interface. IPv6 addresses have no brackets.
"""

import signal
import socket
import sys


def bind(kind, rest):
    if kind == "unix":
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        door.bind(rest)
        return door
    interface = None
    if kind == "dev":
        interface, rest = rest.split(":", 1)
    ip, port = rest.rsplit(":", 1)
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    if kind == "udp":
        door = socket.socket(family, socket.SOCK_DGRAM)
    else:
        door = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_MPTCP if kind == "mptcp" else 0)
    if interface:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    door.bind((ip, int(port)))
    return door


def main():
    doors = [bind(*argument.split(":", 1)) for argument in sys.argv[1:]]
    for door in doors:
        if door.type == socket.SOCK_STREAM:
            door.listen()
    print("open", flush=True)
    signal.pause()


main()
