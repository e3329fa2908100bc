"""Runs the studio on a project folder: who may come in, where it listens, what is printed once."""

from __future__ import annotations

import contextlib
import html
import ipaddress
import os
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from palate.durable import StorageError
from palate.store import Store, StoreError
from palate.studio.context import Export, WinRates
from palate.studio.files import Views
from palate.studio.guard import LOOPBACK
from palate.studio.joining import TokenFile, join_link
from palate.studio.reach import address, announced

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

FIRST_RATERS = 3  # join links made along with the admin's at the first start


class StudioError(ValueError):
    """The studio cannot start; the message is one line and says what to do."""


def serve(
    folder: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    names: Iterable[str] = (),
    raters: int | None = None,
    open_browser: bool = False,
    win_rates: WinRates | None = None,
    export: Export | None = None,
    write: Callable[[str], None] = print,
) -> None:
    """Serves a project until it is interrupted.

    host, port: where it listens; anything but the loopback only once tokens were made. names: under which it is reached
    beside that, such as that of a proxy. raters: how many more join links to make. Raises StudioError, and what
    `Store.open` does.
    """
    folder = Path(folder)
    with _opened(folder) as store:
        made = prepare(
            store, host=host, port=port, names=names, raters=raters, win_rates=win_rates, export=export, write=write
        )
        write("  Ctrl-C stops it.")
        with (
            announced(folder, made.base),
            opened(open_browser, made.base, TokenFile(folder), folder),
            encoding_ahead(store, made.views, write),
            contextlib.suppress(KeyboardInterrupt),
            terminable(),
        ):
            made.server.run(sockets=[made.listening])
    write("The studio has stopped; every answer that was acknowledged is on disk.")


def _opened(folder: Path) -> Store:
    """The project's store. Raises StudioError where its studio runs already."""
    try:
        return Store.open(folder)
    except StorageError:
        if base := address(folder):
            raise StudioError(f"the studio of {folder} runs already, at {base}: open it there, or stop it") from None
        raise


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM is heard as Ctrl-C is, so that all is closed as then; only the main thread can hear it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def encoding_ahead(store: Store, views: Views, write: Callable[[str], None]) -> Iterator[None]:
    """Media that raters get in another encoding than they lie there are encoded meanwhile, the next ones first."""

    def work() -> None:
        with contextlib.suppress(StoreError, OSError):  # which whoever asks for something is told
            media = [(sha256, store.folder / path, type) for sha256, path, type in store.media_to_show()]
            views.make_ahead(media, stop, lambda said: write(f"  {said}"))

    stop = threading.Event()
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


@contextlib.contextmanager
def beside(
    store: Store,
    *,
    port: int = 8765,
    win_rates: WinRates | None = None,
    export: Export | None = None,
    note: Callable[[], str] | None = None,
    write: Callable[[str], None] = print,
) -> Iterator[str]:
    """The studio of an open store on the loopback, in a thread of its own as long as the block; gives its address.

    note: what raters are told who have nothing to judge, as long as more is to come.
    """
    made = prepare(store, host="127.0.0.1", port=port, win_rates=win_rates, export=export, note=note, write=write)
    thread = threading.Thread(target=made.server.run, kwargs={"sockets": [made.listening]}, daemon=True)
    thread.start()
    try:
        with announced(store.folder, made.base):
            yield made.base
    finally:
        made.server.should_exit = True
        thread.join(10)
        made.listening.close()


@dataclass(frozen=True)
class Prepared:
    """A server that is about to run, its socket, and the address that links begin with."""

    server: uvicorn.Server
    listening: socket.socket
    base: str
    views: Views


def prepare(
    store: Store,
    *,
    host: str,
    port: int,
    names: Iterable[str] = (),
    raters: int | None = None,
    win_rates: WinRates | None = None,
    export: Export | None = None,
    note: Callable[[], str] | None = None,
    write: Callable[[str], None] = print,
) -> Prepared:
    """Tokens are made and told, the port is taken. Raises StudioError."""
    import uvicorn

    from palate.studio.app import create

    first = not any(rater.role == "admin" and not rater.revoked for rater in store.raters())
    if first and not is_loopback(host):
        raise StudioError(
            f"nobody has a token yet, so that {host} would let everybody try: start it once without --host, "
            "which makes them, then again"
        )
    listening = listen(host, port)
    base = f"http://{shown_host(host)}:{listening.getsockname()[1]}"
    file = TokenFile(store.folder)
    say(write, base, file, store, new=invite(store, file, first, raters))
    if telling := store.telling():
        write(
            f"  Comparisons of videos of several types, by which raters can tell models apart: {telling}. "
            "Bring them to one encoding first (docs/media.md)."
        )
    app = create(store, hosts=reached_by(host, names), win_rates=win_rates, export=export, note=note)
    return Prepared(uvicorn.Server(config_of(app)), listening, base, app.state.studio.views)


def config_of(app: FastAPI) -> uvicorn.Config:
    """How the studio is served, whoever it is served to."""
    import uvicorn

    from palate.studio.patience import REST_SECONDS, Patient

    return uvicorn.Config(
        app,
        http=Patient,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=REST_SECONDS,
        timeout_graceful_shutdown=3,
    )


def is_loopback(host: str) -> bool:
    if host.lower() in LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, taken before anything is printed. Raises StudioError if it cannot be had."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        with contextlib.ExitStack() as held:
            listening = held.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(256)
            held.pop_all()
        return listening
    except OSError as error:
        raise StudioError(
            f"{host} port {port} cannot be used ({error.strerror or error}); choose another by --port, 0 for any"
        ) from None


def reached_by(host: str, names: Iterable[str]) -> set[str]:
    """Host names that requests may carry: as a page elsewhere could point its own name at this address."""
    found = {name.strip().lower() for name in names}
    if not is_loopback(host):
        found.add(host.strip("[]").lower())
        found.add(socket.gethostname().lower())
        if host in ("0.0.0.0", "::"):
            with contextlib.suppress(OSError):
                found |= {str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)}
            found.add(outward())
    return found


def outward() -> str:
    """The address by which this machine is seen from others; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def shown_host(host: str) -> str:
    """The host of links that are printed."""
    if host in ("0.0.0.0", "::"):
        return outward()
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def invite(store: Store, file: TokenFile, first: bool, raters: int | None) -> bool:
    """Makes the tokens of the first start, or as many more as were asked for; whether there are new ones.

    Where the file tells no admin's token that is valid (it was deleted, or a kill came before it was written), a new
    admin's: else nobody could come in as one again.
    """
    locked_out = not any(is_admins(store, token) for _, role, token in file.read() if role == "admin")
    if locked_out:
        _, token = store.add_rater("admin", "admin")
        file.add("admin", "admin", token)
    count = sum(rater.role == "rater" for rater in store.raters())
    more = raters if raters is not None else (FIRST_RATERS if first else 0)
    for number in range(count + 1, count + more + 1):
        _, token = store.add_rater(f"rater {number}")
        file.add(f"rater {number}", "rater", token)
    return locked_out or more > 0


def say(write: Callable[[str], None], base: str, file: TokenFile, store: Store, new: bool) -> None:
    """Where it is, the owner's link, and those to send to raters if some are new. Each token is told once."""
    write(f"Studio of {store.folder} at {base}")
    rows = file.read()
    mine = own(store, rows)
    write(f"  Your link: {join_link(base, mine)}")
    if not new:
        write(f"  A rater's is {join_link(base, 'TOKEN')}; tokens are in {file.path}, and the dashboard makes more.")
        return
    if others := [row for row in rows if row[2] != mine]:
        write("  To send, one for each rater:")
    for name, role, token in others:
        write(f"    {name + ' (admin)' * (role == 'admin'):<12} {join_link(base, token)}")
    write(f"  A link lets whoever has it vote in that name. They are kept in {file.path} (for your eyes only).")


def own(store: Store, rows: Iterable[tuple[str, str, str]]) -> str:
    """The token of whoever runs the studio: the first valid one of an admin. `invite` sees to it that there is one."""
    return next(token for _, role, token in rows if role == "admin" and is_admins(store, token))


def is_admins(store: Store, token: str) -> bool:
    rater = store.rater_of(token)
    return rater is not None and rater.role == "admin"


@contextlib.contextmanager
def opened(wanted: bool, base: str, file: TokenFile, folder: Path) -> Iterator[None]:
    """Opens the browser as admin by a page on disk that forwards there: a token in a command line is for all to see."""
    token = next((token for _, role, token in file.read() if role == "admin"), None)
    if not wanted or token is None:
        yield
        return
    page = folder / "open-studio.html"
    with contextlib.suppress(FileNotFoundError):
        page.unlink()
    target = html.escape(join_link(base, token), quote=True)
    descriptor = os.open(page, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write("<!doctype html><title>Studio</title>")
        out.write(f'<meta http-equiv="refresh" content="0; url={target}"><a href="{target}">Studio</a>\n')
    try:
        webbrowser.open(page.resolve().as_uri())
        yield
    finally:
        page.unlink(missing_ok=True)
