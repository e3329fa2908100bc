"""Small projects and clients for the studio's tests."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import uvicorn
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from palate.project import ProjectSettings, create
from palate.records import Comparison, Medium, Sample, now
from palate.store import Store
from palate.studio.app import create as create_app
from palate.studio.guard import csrf_of
from palate.studio.serve import config_of, listen

BASE = "http://127.0.0.1"
SECRETS = ("model-base", "model-tuned", "sample-", "comparison-", "4711", "workflow")  # what no rater may learn


def picture(shade: int, size: int = 16, text: str = "", kind: str = "PNG") -> bytes:
    """A picture that is the brighter the greater its shade (0 to 255), no two alike for different shades."""
    out = io.BytesIO()
    info = PngInfo()
    if text:
        info.add_text("parameters", text)
    made = Image.new("RGB", (size, size), (shade, shade, shade))
    made.save(out, kind, **({"pnginfo": info} if kind == "PNG" else {}))
    return out.getvalue()


def shade_of(data: bytes) -> int:
    with Image.open(io.BytesIO(data)) as opened:
        return opened.convert("L").getpixel((0, 0))


def brighter_first(i: int) -> list[int]:
    """Two shades of comparison i, which is brighter left to chance."""
    return random.Random(i).sample(range(20, 236), 2)


def fill(store: Store, n: int, *, size: int = 16, show: int = 2, prompt: str = "prompt {}", wanted: int = 3) -> None:
    """n comparisons; samples tell everything that raters must not learn."""
    samples, comparisons = [], []
    for i in range(n):
        shades = random.Random(i).sample(range(20, 236), show) if show != 2 else brighter_first(i)
        text = prompt.format(i)
        mine = [
            Sample(
                f"sample-{i}-{j}",
                text,
                Medium("image/png", picture(shade, size, text=f"workflow {i} model-base seed 4711")),
                "model-tuned" if j else "model-base",
                now(),
                seed=4711,
            )
            for j, shade in enumerate(shades)
        ]
        samples += mine
        names = tuple(sample.id for sample in mine)
        comparisons.append(Comparison(f"comparison-{i}", text, names, wanted=wanted))
    store.add_samples(samples)
    store.add_comparisons(comparisons)


@contextmanager
def project(folder, n: int = 6, *, size: int = 16, show: int = 2, prompt: str = "prompt {}", wanted=3, **settings):
    """An open store with n comparisons. No known pairs or repeats unless asked for."""
    settings = {"title": "A study", "known_share": 0, "repeat_share": 0, "show": show} | settings
    create(folder, ProjectSettings(**settings))
    with Store.open(folder) as store:
        fill(store, n, size=size, show=show, prompt=prompt, wanted=wanted)
        yield store


class Person:
    """A rater at the studio over HTTP, with all that a browser would send."""

    def __init__(self, client, cookie: str, token: str, origin: str = BASE) -> None:
        self.client, self.token = client, token
        self.headers = {"cookie": f"{cookie}={token}"}
        self.posting = self.headers | {"origin": origin, "x-csrf": csrf_of(token), "content-type": "application/json"}

    def get(self, path: str, **headers):
        return self.client.get(path, headers=self.headers | headers)

    def post(self, path: str, body, **headers):
        return self.client.post(path, json=body, headers=self.posting | headers)

    def lease(self, n: int = 1) -> list[dict]:
        reply = self.post("/api/lease", {"n": n})
        assert reply.status_code == 200, reply.text
        return reply.json()["leases"]

    def answer(self, lease: str, key: str, **answers):
        return self.post("/api/answer", {"lease": lease, "key": key, "answers": answers})


def person(client, store: Store, name: str = "Ada", role: str = "rater", origin: str = BASE) -> Person:
    rater, token = store.add_rater(name, role)
    made = Person(client, client_cookie(store), token, origin)
    made.id = rater
    return made


def client_cookie(store: Store) -> str:
    from palate.studio.joining import cookie_name

    return cookie_name(store.folder)


@contextmanager
def served(store: Store, **options) -> Iterator[str]:
    """The studio behind a real server on a free port; its address."""
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(config_of(create_app(store, **options)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


def http(base: str) -> httpx2.Client:
    return httpx2.Client(base_url=base, timeout=20)
