"""The entry point of the `dist` command. Each error becomes a line on standard error and an exit code.

Exit codes: 0 done, 1 failed or timed out, 2 bad input, 3 nothing failed, but a gate vetoed an image, 129 hung up,
130 interrupted, 143 terminated.
"""

import logging
import os
import sys
import traceback

from cyclopts import CycloptsError, UnknownCommandError

from prefect_dist.cli.app import app, explain_unknown
from prefect_dist.cli.inputs import BadInput
from prefect_dist.cli.output import print_error
from prefect_dist.cli.signals import INTERRUPTED, Interrupted, exit_process
from prefect_dist.ocispec.errors import DistError, Mistakes

_FAILED, _BAD_INPUT = 1, 2
_STDERR = 2


def main() -> None:
    """Run the command line of the process, and exit."""
    _open_missing_streams()
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    _log_to_stderr(logging.DEBUG if debug else logging.WARNING)
    try:
        code = app.meta(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except UnknownCommandError as exc:
        code = _report(explain_unknown(exc.unused_tokens[0] if exc.unused_tokens else ""), _BAD_INPUT)
    except CycloptsError as exc:
        command = " ".join(["dist", *(exc.command_chain or ())])
        code = _report(f"{str(exc).rstrip('.')} (see {command} --help)", _BAD_INPUT)
    except BadInput as exc:
        code = _report(exc, _BAD_INPUT)
    except DistError as exc:
        code = _report(exc, _FAILED, trace=debug)
    except Interrupted as exc:
        code = _report(exc, exc.code)
    except KeyboardInterrupt:  # before the command began
        code = _report("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of standard output has closed it. Python must not write its buffer again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _FAILED
    except OSError as exc:
        code = _report(f"{exc.filename or 'standard output'}: {exc.strerror or exc}", _FAILED, trace=debug)
    except Exception as exc:  # noqa: BLE001 - a user gets one line for any error; --debug adds the traceback
        message = f"unexpected {type(exc).__name__}: {exc}; this is a bug in dist: run again with --debug and report it"
        code = _report(message, _FAILED, trace=debug)
    exit_process(code or 0)


def _open_missing_streams() -> None:
    """Connect a standard stream that the caller closed to /dev/null. Otherwise a file of the store could get its number."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(number)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(_STDERR, "w", encoding="utf-8", closefd=False)


def _log_to_stderr(level: int) -> None:
    """Write only the logs of this package to standard error. Logs of other packages may contain signatures and tokens."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("prefect_dist")
    logger.setLevel(level)
    logger.addHandler(handler)
    logger.propagate = False


def _report(message: object, code: int, *, trace: bool = False) -> int:
    if trace:
        traceback.print_exc()
    for line in message.lines if isinstance(message, Mistakes) else (message,):
        print_error(line)
    return code


if __name__ == "__main__":
    main()
