"""A long wire between two namespaces: delay and random loss each way, which this kernel may have no queueing discipline for.

usage: wire.py <namespace>:<device> <namespace>:<device> <delay ms> <loss per mille>

Prints "up" once both devices exist. Ends with its parent.
"""

import ctypes, fcntl, heapq, os, random, select, struct, sys, time

TUNSETIFF, IFF_TUN, IFF_NO_PI, CLONE_NEWNET = 0x400454CA, 1, 0x1000, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


def open_tun(place):
    namespace, device = place.split(":")
    with open(f"/run/netns/{namespace}") as there:
        if libc.setns(there.fileno(), CLONE_NEWNET) != 0:
            sys.exit(f"cannot enter {namespace}: errno {ctypes.get_errno()}")
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", device.encode(), IFF_TUN | IFF_NO_PI))
    return fd


def main():
    ends = [open_tun(place) for place in sys.argv[1:3]]
    delay, loss = int(sys.argv[3]) / 1000, int(sys.argv[4]) / 1000
    dice, under_way, number = random.Random(1), [], 0
    print("up", flush=True)
    while os.getppid() != 1:
        now = time.monotonic()
        while under_way and under_way[0][0] <= now:
            _, _, to, packet = heapq.heappop(under_way)
            try:
                os.write(to, packet)
            except (BlockingIOError, OSError):
                pass
        wait = max(0, under_way[0][0] - now) if under_way else 1
        for fd in select.select(ends, [], [], wait)[0]:
            while True:
                try:
                    packet = os.read(fd, 65536)
                except BlockingIOError:
                    break
                except OSError:
                    break
                if dice.random() < loss:
                    continue
                number += 1
                heapq.heappush(under_way, (time.monotonic() + delay, number, ends[1 - ends.index(fd)], packet))


main()
