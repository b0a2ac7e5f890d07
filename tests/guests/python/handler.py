"""An HTTP handler: a request's path, its body in capitals, or what another server says."""
import asyncio
from urllib.parse import urlsplit

import poll_loop
from componentize_py_types import Ok
from poll_loop import PollLoop, Sink, Stream
from wit_world import exports
from wit_world.imports.types import (
    Fields,
    IncomingRequest,
    OutgoingBody,
    OutgoingRequest,
    OutgoingResponse,
    ResponseOutparam,
    Scheme_Http,
)

count = 0


async def text_of(body):
    stream, text = Stream(body), b""
    while (chunk := await stream.next()) is not None:
        text += chunk
    return text.decode()


async def answer(request):
    global count
    url = urlsplit(request.path_with_query() or "/")
    match url.path:
        case "/upper":
            return (await text_of(request.consume())).upper()
        case "/fetch":
            authority, _, path = url.query.partition("/")
            outgoing = OutgoingRequest(Fields())
            outgoing.set_scheme(Scheme_Http())
            outgoing.set_authority(authority)
            outgoing.set_path_with_query("/" + path)
            OutgoingBody.finish(outgoing.body(), None)
            response = await poll_loop.send(outgoing)
            return f"{response.status()} {await text_of(response.consume())}"
        case "/raise":
            raise ValueError("as I was told")
        case path:
            count += 1
            return f"{path} {count}"


async def handle(request, out):
    text = await answer(request)
    response = OutgoingResponse(Fields.from_list([("content-type", b"text/plain")]))
    response.set_status_code(201)
    body = Sink(response.body())
    ResponseOutparam.set(out, Ok(response))
    await body.send(text.encode())
    body.close()


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        loop = PollLoop()
        asyncio.set_event_loop(loop)
        loop.run_until_complete(handle(request, response_out))
