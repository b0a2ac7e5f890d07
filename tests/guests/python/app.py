"""Two programs in one: an asyncio server that gives each line back in capitals, and a client of it."""
import asyncio
import sys


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


async def main():
    match sys.argv[1:]:
        case ["serve", port]:
            await serve(int(port))
        case ["call", host, port, *lines]:
            await asyncio.gather(call(host, int(port), lines), asyncio.sleep(0.01))


class Run:
    def run(self):
        asyncio.run(main())
