"""A process of a launch that is gone, noticed by the others whatever they wait for.

A collective waits for a lost host as long as its time limit: half an hour. So every process keeps a connection to the
first one, over which nothing is sent until one of them leaves. The system closes it with its process; and where a
whole host is lost, or the way there, the system's keep-alive finds out in half a minute, whatever Python is doing.
"""

import contextlib
import itertools
import logging
import os
import re
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator

import torch.distributed
from accelerate import PartialState
from torch.distributed.distributed_c10d import Store, _get_default_store

from hf_progressive.distributed.processes import MainProcessFailedError
from hf_progressive.distributed.termination import end_now

logger = logging.getLogger(__name__)

EXIT_CODE = 1
"""Of a process that ended because another one is gone: training broke off."""

IDLE_SECONDS, PROBE_SECONDS, PROBES = 10, 5, 4
"""The keep-alive: after so long without a word, so many questions, so far apart."""

_GRACE_SECONDS = 15.0  # for the launcher to end a process after another has failed, and has said why
_SETTLING_SECONDS = 3.0  # between the error of a collective and the end of the connection of who caused it
_CONNECTING_SECONDS = 10.0
_watches = itertools.count()
"""Counts `ended_with_the_others`, which all processes go through in the same order."""
_LEFT, _FAILED, _ENDED = b".", b"!", b"x"
_LOST_IN_WORDS = re.compile(r"gloo|nccl|connection (closed|reset)|broken pipe|timed out|store", re.IGNORECASE)


@contextlib.contextmanager
def ended_with_the_others(state: PartialState) -> Iterator[None]:
    """End this process in a block, with code 1 and one line among all, if another one of the launch is gone.

    One that fails with a message of its own has said why; the others then end without a further word if the launcher
    does not end them before. Where no connection to the first process can be made, all is as without this.
    """
    address = os.environ.get("MASTER_ADDR")
    if state.num_processes == 1 or not torch.distributed.is_initialized() or not address:
        yield
        return
    watch = _Watch(state, address)
    try:
        yield
    except (RuntimeError, MainProcessFailedError) as error:
        if isinstance(error, MainProcessFailedError) or _LOST_IN_WORDS.search(str(error)):
            watch.ended.wait(_SETTLING_SECONDS)  # if a lost process caused it, the watch ends this one
        watch.leave(_FAILED)
        raise
    except SystemExit:  # told to stop, as the others are
        watch.leave(_LEFT)
        raise
    except BaseException:
        watch.leave(_FAILED)
        raise
    watch.leave(_LEFT)


class _Watch:
    """The connections of a process, to the first or of the first to all, and the thread that listens to them."""

    def __init__(self, state: PartialState, address: str) -> None:
        self.ended = threading.Event()  # never set while the process lives: the watch ends it
        self._rank, self._is_first = state.process_index, state.is_main_process
        self._speaks = self._is_first  # or the first that is left on a host, where the first process is gone
        self._names: dict[socket.socket, str] = {}
        self._lock = threading.Lock()
        self._leaving = False
        self._selector = selectors.DefaultSelector()
        store, key = _get_default_store(), f"hf_progressive/watch/{next(_watches)}"
        try:
            if self._is_first:
                self._accept(state.num_processes - 1, store, key)
            else:
                self._connect(address, store.get(key).decode())
        except (OSError, ValueError) as error:
            logger.debug("no watch over the other processes: %s", error)
        threading.Thread(target=self._listen, name="lost processes", daemon=True).start()

    def _accept(self, others: int, store: Store, key: str) -> None:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        word = secrets.token_hex(16)
        try:
            server = socket.create_server(("", 0), family=family, dualstack_ipv6=dual, backlog=others)
        except OSError:
            store.set(key, "nowhere")
            raise
        with server:
            server.settimeout(_CONNECTING_SECONDS)
            store.set(key, f"{server.getsockname()[1]} {word} {socket.gethostname()}")
            while len(self._names) < others:
                connection, _ = server.accept()
                connection.settimeout(_CONNECTING_SECONDS)
                given, _, name = connection.recv(256).decode(errors="replace").partition(" ")
                if secrets.compare_digest(given.encode(), word.encode()):
                    self._watch(connection, name)
                else:
                    connection.close()

    def _connect(self, address: str, told: str) -> None:
        port, word, host = told.split()
        self._speaks = os.environ.get("LOCAL_RANK", "0") == ("1" if host == socket.gethostname() else "0")
        connection = socket.create_connection((address, int(port)), timeout=_CONNECTING_SECONDS)
        connection.sendall(f"{word} process {self._rank} on {socket.gethostname()}".encode()[:256])
        self._watch(connection, "the first process")

    def _watch(self, connection: socket.socket, name: str) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        idle = "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"  # as macOS calls it
        for option, value in ((idle, IDLE_SECONDS), ("TCP_KEEPINTVL", PROBE_SECONDS), ("TCP_KEEPCNT", PROBES)):
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        connection.setblocking(False)
        self._names[connection] = name
        self._selector.register(connection, selectors.EVENT_READ)

    def _listen(self) -> None:
        while self._selector.get_map() and not self._leaving:
            for key, _ in self._selector.select(timeout=1.0):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                try:
                    word = connection.recv(1)
                except OSError:
                    word = b""
                self._selector.unregister(connection)
                if word == _FAILED:
                    time.sleep(_GRACE_SECONDS)
                if word != _LEFT:
                    self._end(self._names[connection], is_told=word in (_FAILED, _ENDED))

    def _end(self, name: str, *, is_told: bool) -> None:
        with self._lock:
            if self._leaving:
                return
            self._say(_ENDED)
            if self._speaks and not is_told:
                sys.stderr.write(
                    f"hf-progressive: error: {name} is gone: it was killed, or its host or the network failed; start"
                    " again, and what was saved goes on\n"
                )
                sys.stderr.flush()
            end_now(EXIT_CODE)

    def leave(self, word: bytes) -> None:
        """Say that this process goes, and watch no longer."""
        with self._lock:
            self._leaving = True
            self._say(word)

    def _say(self, word: bytes) -> None:
        for connection in self._names:
            with contextlib.suppress(OSError):
                connection.send(word)
