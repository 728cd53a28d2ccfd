"""Clients that ask the text service for one text each, again and again: bare sockets in one process, so that they cost little of the machine.

`python -m benchmarks._text_clients PORT COUNT TOKENS SECONDS` prints the answers a second and the clients' own CPU milliseconds an answer.
"""

from __future__ import annotations

import json
import random
import selectors
import socket
import subprocess
import sys
import time

#: One token each to MiniLM: a word of three pieces would make "10 tokens" any number from 10 to 18, and batches of them full of padding.
WORDS = "no the lungs are clear heart size is normal left right lower mass of in a and chest bone liver stable scan fluid small".split()  # noqa: SIM905


def sentence(rng: random.Random, tokens: int) -> str:
    """A text of so many tokens: two are special."""
    return " ".join(rng.choices(WORDS, k=tokens - 2))


def rate(port: int, count: int, tokens: int, seconds: float) -> tuple[float, float]:
    """Answers a second, and CPU milliseconds of the clients an answer, measured from a process of their own."""
    words = [str(v) for v in (port, count, tokens, seconds)]
    run = subprocess.run([sys.executable, "-m", "benchmarks._text_clients", *words], capture_output=True, text=True, check=True)
    found = [float(v) for v in run.stdout.split()]
    return found[0], found[1]


def _request(rng: random.Random, tokens: int) -> bytes:
    body = json.dumps({"input": sentence(rng, tokens), "encoding_format": "base64"}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def main(port: int, count: int, tokens: int, seconds: float) -> None:
    """Ask, and print."""
    rng = random.Random(time.time_ns())
    selector = selectors.DefaultSelector()
    received: dict[socket.socket, bytes] = {}
    # Texts are made ahead, so that what is measured is asking; hardly two are the same.
    texts = [_request(rng, tokens) for _ in range(5000)]
    turn = 0
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(client, selectors.EVENT_READ)
        received[client] = b""
    for client in received:
        turn += 1
        client.sendall(texts[turn % len(texts)])
    answers, started, busy = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds:
        for key, _ in selector.select(0.2):
            client = key.fileobj  # type: ignore[assignment]
            if not (data := client.recv(65536)):
                raise SystemExit("the server closed a connection")
            received[client] += data
            head, found, body = received[client].partition(b"\r\n\r\n")
            if not found:
                continue
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(head.decode())
            if len(body) < int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]):
                continue
            received[client] = b""
            answers, turn = answers + 1, turn + 1
            client.sendall(texts[turn % len(texts)])
    passed = time.perf_counter() - started
    print(answers / passed, 1000 * (time.process_time() - busy) / max(1, answers))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
