"""When does a request begin, whoever sends it however slowly?"""

from starlette.requests import Request
from starlette.types import Message

from coordinator.http.generation import Generation
from tests.support.asgi import Client
from tests.support.fronts import Front, front
from tests.support.generations import scene

JSON = ((b"content-type", b"application/json"),)


async def answered(one: Front, path: str, *pieces: bytes) -> Generation:
    """What answers a body that comes in `pieces`, each of which takes a second."""
    client = Client("POST", path, pieces, JSON)

    async def receive() -> Message:
        one.clock.time += 1.0
        return await client.receive()

    (handler,) = (operation.handler for operation in one.operations if operation.path == path)
    generation = await handler(Request(client.scope, receive))
    assert isinstance(generation, Generation)
    return generation


@scene
async def test_a_slow_upload_is_no_time_of_the_coordinator() -> None:
    one = front()
    began = one.clock.time
    body = (b'{"model": "m", "prompt": [1, 2]', b', "max_tokens"', b": 2}")
    assert (await answered(one, "/v1/completions", *body))._received_at == began + 3.0
