"""How close questions to an endpoint come to the time that the server needs for them, and the memory that they take.

    python benchmarks/endpoint.py [--questions 2000] [--concurrency 32] [--milliseconds 50] [--repeats 3]

A server in a process of its own answers each question after some milliseconds, whatever else it is asked. The ideal is
``questions / concurrency`` times that long. Each repeat asks all questions with a journal on disk and without one, in
turns, over connections that are open; the memory is how much more this process had resident after the last repeat than
after the first.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, medians, report

from astra_accel.endpoints.answers import Question
from astra_accel.endpoints.client import EndpointClient
from astra_accel.endpoints.endpoint import Endpoint
from astra_accel.endpoints.journal import Journal

SERVER = """
import asyncio, json, sys
body = json.dumps({"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "Well."}}]})
head = f"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
reply = (head + body).encode()

async def answer(reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\\r\\n\\r\\n")).decode().lower()
            await reader.readexactly(int(head.split("content-length:")[1].split()[0]))
            await asyncio.sleep(float(sys.argv[1]))
            writer.write(reply)
            await writer.drain()
    except asyncio.IncompleteReadError:
        writer.close()

async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and write the ratios."""
    options = _parse(arguments)
    seconds = options.milliseconds / 1000
    ideal = options.questions / options.concurrency * seconds
    measured: dict[str, list[float]] = {"with a journal": [], "without": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen([sys.executable, "-c", SERVER, str(seconds)], stdout=subprocess.PIPE, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
            clients = {
                name: EndpointClient(Endpoint(url, "m", max_concurrency=options.concurrency), name) for name in measured
            }
            clients["with a journal"].keep_journal(Journal(Path(folder)))
            resident = [_ask(clients, measured, options, repeat) for repeat in range(options.repeats + 1)]
        finally:
            server.kill()
    measured = {name: values[1:] for name, values in measured.items()}  # the first opens the connections
    ratios = {f"{name} / ideal": value / ideal for name, value in medians(measured).items()}
    more = resident[-1] - resident[0]
    figures = {"ideal, seconds": ideal, "memory after the last repeat minus after the first, MB": more}
    return report("endpoint", options, measured, ratios, figures=figures)


def _ask(
    clients: dict[str, EndpointClient], measured: dict[str, list[float]], options: argparse.Namespace, repeat: int
) -> float:
    """Ask all questions by each client; the memory that this process has had resident at most, in MB."""
    for name, client in clients.items():
        questions = [
            Question(
                [{"role": "user", "content": f"Question {number}. " * 10}], {"max_tokens": 8}, f"{repeat}/{number}"
            )
            for number in range(options.questions)
        ]
        started = time.perf_counter()
        client.ask(questions)
        measured[name].append(time.perf_counter() - started)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=2000, help="default 2000")
    parser.add_argument("--concurrency", type=int, default=32, help="questions under way at once (default 32)")
    parser.add_argument("--milliseconds", type=float, default=50.0, help="of an answer (default 50)")
    parser.add_argument("--repeats", type=int, default=3, help="of each, in turns (default 3)")
    parser.add_argument("--target", type=float, help="what the first ratio is aimed at; written beside it")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where the result is written")
    options = parser.parse_args(arguments)
    options.prompts = "none"
    return options


if __name__ == "__main__":
    main()
