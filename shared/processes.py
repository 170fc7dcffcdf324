"""Worker processes that may die: framed CBOR over pipes, one request at a time.

Heavy or hostile work (training, homomorphic sums, embeddings) runs in a child
that imports what it needs, so that its parent stays light and survives it.

A child module calls :func:`serve` with a table of operations. The parent holds
a :class:`Child`. An error of ours raised in an operation is raised again in the
parent with the same class and message; a child that dies is :class:`ChildDied`,
and the next call starts a fresh one.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
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


class Child:
    """One worker process, started at its first call and restarted after a death.

    Calls are serialised by a lock; use several children for parallel work.
    """

    def __init__(
        self, module: str, *, memory_limit_bytes: int | None = None, threads: int = 1, nice: int = 0
    ) -> None:
        """Describe the child; nothing is started yet.

        Args:
            module: Run as ``python -m module``; it must call :func:`serve`.
            memory_limit_bytes: Bound on the child's data segment and private
                mappings (``RLIMIT_DATA``); beyond it allocations fail.
            threads: Arithmetic threads of numerical libraries in the child.
            nice: Added to the child's niceness; training yields to answering.
        """
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
            ChildDied: the process ended before it answered.
            LlmOsError: raised by the operation; same class, same message.
        """
        request = cbor2.dumps({"operation": operation, "arguments": arguments})
        with self._lock:
            try:
                process = self._started()
                assert process.stdin is not None
                assert process.stdout is not None
                _write(process.stdin, request)
                answer = _read(process.stdout)
            except (EOFError, OSError) as err:
                status = self._stop()
                raise errors.ChildDied(
                    f"the worker {self._module} ended (status {status}) during '{operation}'"
                ) from err
            except BaseException:
                # Interrupted: its answer would be taken for the next call's.
                self._stop()
                raise
        if "error" in answer:
            raise _rebuilt(answer["error"], answer["message"])
        return answer["result"]

    def close(self) -> None:
        """End the process; harmless if there is none."""
        process = self._process
        if process is not None:
            # Not under the lock: a call may hold it while it waits for this very process.
            process.kill()
        with self._lock:
            self._stop()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()  # of one that died between two calls, the pipes
        threads = str(self._threads)
        environment = os.environ | {
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
        }
        self._process = subprocess.Popen(  # noqa: S603  our own module, no shell
            [
                sys.executable,
                "-m",
                "shared.processes",
                self._module,
                str(self._memory_limit_bytes or 0),
                str(self._nice),
                str(os.getpid()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the parent, which ends its children in order
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


def _rebuilt(name: str, message: str) -> Exception:
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
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
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
    runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    main()
