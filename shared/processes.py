"""Worker processes that may die: framed CBOR over pipes, one request at a time.

Heavy or hostile work (training, homomorphic sums, embeddings) runs in a child
that imports what it needs, so that its parent stays light and survives it.

A child module calls :func:`serve` with a table of operations. The parent holds
a :class:`Child`. An error of ours raised in an operation is raised again in the
parent with the same class and message; a child that dies is :class:`ChildDied`,
and the next call starts a fresh one.

Where requests overlap, the parent holds a :class:`TalkingChild` and the child a
:class:`Line`: messages go both ways whenever there is one.
"""

from __future__ import annotations

import contextlib
import os
import queue
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from typing import IO, Any, Final

import cbor2

from shared import errors

_LENGTH: Final = struct.Struct("<Q")

Operation = Callable[..., Any]


def _write(pipe: IO[bytes], frame: bytes) -> None:
    pipe.write(_LENGTH.pack(len(frame)))
    pipe.write(frame)
    pipe.flush()


def _read(pipe: IO[bytes]) -> Any:
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    frame = pipe.read(length)
    if len(frame) < length:
        raise EOFError
    return cbor2.loads(frame)


def _frames() -> tuple[IO[bytes], IO[bytes]]:
    """The child's pipes; whatever else it prints goes to standard error from now on."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Not sys.stdin: a thread may be reading while the interpreter ends, which locks that one.
    return os.fdopen(os.dup(sys.stdin.fileno()), "rb"), answers


def _spawned(
    module: str,
    *,
    memory_limit_bytes: int | None,
    threads: int,
    nice: int,
    arguments: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    environment = os.environ | dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)
    )
    words = [module, str(memory_limit_bytes or 0), str(nice), str(os.getpid()), *arguments]
    return subprocess.Popen(  # noqa: S603  our own module, no shell
        [sys.executable, "-m", "shared.processes", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches the parent, which ends its children in order
    )


class Child:
    """One worker process, started at its first call and restarted after a death.

    Calls are serialised by a lock; use several children for parallel work.
    """

    def __init__(
        self,
        module: str,
        *,
        memory_limit_bytes: int | None = None,
        threads: int = 1,
        nice: int = 0,
        deadline_s: float | None = None,
    ) -> None:
        """Describe the child; nothing is started yet.

        Args:
            module: Run as ``python -m module``; it must call :func:`serve`.
            memory_limit_bytes: Bound on the child's data segment and private
                mappings (``RLIMIT_DATA``); beyond it allocations fail.
            threads: Arithmetic threads of numerical libraries in the child.
            nice: Added to the child's niceness; training yields to answering.
            deadline_s: A call that takes longer ends the child, stopped or busy; ``None``: none does.
        """
        self._deadline_s = deadline_s
        self._module = module
        self._memory_limit_bytes = memory_limit_bytes
        self._threads = threads
        self._nice = nice
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = Lock()

    @property
    def pid(self) -> int | None:
        """Process id while one is running."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process now, so that its imports overlap with other work."""
        with self._lock:
            self._started()

    def call(self, operation: str, **arguments: object) -> Any:
        """Run one operation in the child and return its result.

        Raises:
            ChildDied: the process ended before it answered, or did not answer in time.
            LlmOsError: raised by the operation; same class, same message.
        """
        request = cbor2.dumps({"operation": operation, "arguments": arguments})
        with self._lock:
            late = threading.Event()
            try:
                process = self._started()
                assert process.stdin is not None
                assert process.stdout is not None
                with self._ended_when_late(process, late):
                    _write(process.stdin, request)
                    answer = _read(process.stdout)
            except (EOFError, OSError) as err:
                status = self._stop()
                how = f"took longer than {self._deadline_s:g} s" if late.is_set() else "ended"
                raise errors.ChildDied(
                    f"the worker {self._module} {how} (status {status}) during '{operation}'"
                ) from err
            except BaseException:
                # Interrupted: its answer would be taken for the next call's.
                self._stop()
                raise
        if "error" in answer:
            raise rebuilt(answer["error"], answer["message"])
        return answer["result"]

    def close(self) -> None:
        """End the process; harmless if there is none."""
        process = self._process
        if process is not None:
            # Not under the lock: a call may hold it while it waits for this very process.
            process.kill()
        with self._lock:
            self._stop()

    @contextlib.contextmanager
    def _ended_when_late(
        self, process: subprocess.Popen[bytes], late: threading.Event
    ) -> Iterator[None]:
        """End the process if this takes longer than the deadline; one that was stopped ends, too."""
        if self._deadline_s is None:
            yield
            return

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self._deadline_s, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()  # of one that died between two calls, the pipes
        self._process = _spawned(
            self._module,
            memory_limit_bytes=self._memory_limit_bytes,
            threads=self._threads,
            nice=self._nice,
        )
        return self._process

    def _stop(self) -> int | None:
        if self._process is None:
            return None
        self._process.kill()
        status = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process = None
        return status


class TalkingChild:
    """A worker process that is told things and tells things, in any order.

    One thread receives; any thread may send. A child that died is not started again: make another.
    """

    def __init__(
        self, module: str, *, threads: int = 1, nice: int = 0, arguments: Sequence[str] = ()
    ) -> None:
        """Start ``python -m module arguments``, which must use a :class:`Line`.

        ``threads`` and ``nice`` as :class:`Child`. The process ends with the *thread* that called
        this (see :func:`die_with_parent`).
        """
        self._module = module
        self._process = _spawned(
            module, memory_limit_bytes=None, threads=threads, nice=nice, arguments=arguments
        )
        self._told: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._teller = threading.Thread(target=self._tell, daemon=True, name="pipe")
        self._teller.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, message: Any) -> None:
        """Tell the child something. Returns at once, also while the child does not listen.

        Raises:
            ChildDied: it has ended.
        """
        frame = cbor2.dumps(message)
        if self._process.poll() is not None:
            raise errors.ChildDied(f"the worker {self._module} has ended")
        self._told.put(frame)

    def _tell(self) -> None:
        """Write what is sent: a pipe that is full must not hold up an event loop that sends."""
        pipe = self._process.stdin
        assert pipe is not None
        # Whoever receives hears of its end.
        with contextlib.suppress(OSError):
            while (frame := self._told.get()) is not None:
                _write(pipe, frame)

    def receive(self) -> Any:
        """Wait for what the child tells next.

        Raises:
            ChildDied: it has ended.
        """
        pipe = self._process.stdout
        assert pipe is not None
        try:
            return _read(pipe)
        except (EOFError, OSError, ValueError) as err:
            raise errors.ChildDied(f"the worker {self._module} has ended") from err

    def kill(self) -> None:
        """End it now; harmless if it has ended. Whoever receives is told."""
        self._process.kill()

    def close(self) -> int:
        """End it, and give its pipes back. Nobody may be receiving any more.

        Returns:
            The exit status.
        """
        self._process.kill()
        status = self._process.wait()
        self._told.put(None)
        self._teller.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return status


class Line:
    """The child's end of a :class:`TalkingChild`. Make one, on the main thread, before anything prints.

    A thread reads what comes in, so that messages are at hand between two steps of work.
    """

    def __init__(self) -> None:
        self._requests, self._answers = _frames()
        self._heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True, name="line").start()

    def _listen(self) -> None:
        while True:
            try:
                self._heard.put(_read(self._requests))
            except EOFError:
                self._heard.put(None)
                return

    def heard(self, *, wait_s: float) -> Sequence[Any]:
        """All that was told since; waits for the first at most so long.

        Raises:
            EOFError: the parent has closed the line.
        """
        messages = []
        try:
            messages.append(self._heard.get(timeout=wait_s) if wait_s else self._heard.get_nowait())
            while True:
                messages.append(self._heard.get_nowait())
        except queue.Empty:
            pass
        if None in messages:
            raise EOFError
        return messages

    def tell(self, message: Any) -> None:
        """Tell the parent something."""
        _write(self._answers, cbor2.dumps(message))


def rebuilt(name: str, message: str) -> Exception:
    """The error that a child told by class and message; one that is not ours is ``ChildDied``."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, errors.LlmOsError):
        error = kind.__new__(kind)
        Exception.__init__(error, message)
        return error
    return errors.ChildDied(f"the worker failed: {name}: {message}")


def serve(operations: Mapping[str, Operation]) -> None:
    """Answer requests on standard input until it closes. The child's main loop.

    Standard output belongs to the frames: anything printed goes to standard error.
    """
    requests, answers = _frames()
    while True:
        try:
            request = _read(requests)
        except EOFError:
            return
        try:
            result = operations[request["operation"]](**request["arguments"])
            answer = cbor2.dumps({"result": result})
        except Exception as err:  # noqa: BLE001  whatever it was, the parent must hear of it
            answer = cbor2.dumps({"error": type(err).__name__, "message": str(err)})
        _write(answers, answer)


def die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when its parent ends, however that ends.

    The wish survives ``exec``. It is tied to the *thread* that started this
    process, so a thread that starts children must live as long as they should.
    Other systems offer nothing like it: there only an orderly end takes children along.

    Args:
        parent: The process id of the parent, which may have ended meanwhile.
    """
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        raise SystemExit("the parent has already ended")


def main() -> None:
    """Limit this process, then run the worker module named on the command line."""
    import runpy

    module, limit, nice, parent = sys.argv[1], *map(int, sys.argv[2:5])
    die_with_parent(parent)
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    os.nice(nice)
    sys.argv[1:] = sys.argv[5:]
    runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    main()
