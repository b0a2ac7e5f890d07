"""Programs in Python: a plain one, an asyncio server that gives each line back in capitals, and a client of it."""
import asyncio
import os
import sys

from wit_world import exports
from wit_world.imports.exit import exit_with_code


def plain(directory):
    print(directory, os.environ["NAME"])
    with open(f"{directory}/from-python", "w") as file:
        file.write("text")
    with open(f"{directory}/from-python") as file:
        print(file.read())
    for line in sys.stdin:
        print(line.strip().upper())
    sys.stdout.flush()
    exit_with_code(7)


async def answer(reader, writer):
    while line := await reader.readline():
        writer.write(line.upper())
        await writer.drain()
    writer.close()


async def serve(port):
    server = await asyncio.start_server(answer, "0.0.0.0", port)
    print("listening", flush=True)
    async with server:
        await server.serve_forever()


async def call(host, port, lines):
    reader, writer = await asyncio.open_connection(host, port)
    for line in lines:
        writer.write(line.encode() + b"\n")
        await writer.drain()
        print((await reader.readline()).decode().strip(), flush=True)
    writer.close()


async def both(first, second):
    await asyncio.gather(first, second)


class Run(exports.Run):
    def run(self):
        match sys.argv[1:]:
            case ["plain", directory]:
                plain(directory)
            case ["serve", port]:
                asyncio.run(serve(int(port)))
            case ["call", host, port, *lines]:
                asyncio.run(both(call(host, int(port), lines), asyncio.sleep(0.01)))
            case other:
                raise ValueError(f"which program? {other}")
