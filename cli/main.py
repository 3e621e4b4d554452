"""The entry point of the `dist` command: every way it can end, with its exit code and its line, or one for each mistake.

Exit codes: 0 all done, 1 something failed or took too long, 2 bad input, 3 nothing failed but a gate vetoed an image,
129 hung up, 130 interrupted, 143 terminated.
"""

import logging
import os
import sys
import traceback

from cyclopts import CycloptsError, UnknownCommandError

from prefect_dist.cli.app import app, explain_unknown
from prefect_dist.cli.ending import INTERRUPTED, Ended, leave
from prefect_dist.cli.errors import BadInput, tell
from prefect_dist.ocispec.errors import DistError, Mistakes

_FAILED, _BAD_INPUT = 1, 2


def main() -> None:
    """Run the command line of this process and exit."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    _log_to_stderr(logging.DEBUG if debug else logging.WARNING)
    try:
        code = app.meta(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except UnknownCommandError as exc:
        code = _say(explain_unknown(exc.unused_tokens[0] if exc.unused_tokens else ""), _BAD_INPUT)
    except CycloptsError as exc:
        code = _say(f"{exc} (see dist --help)", _BAD_INPUT)
    except BadInput as exc:
        code = _say(exc, _BAD_INPUT)
    except DistError as exc:
        code = _say(exc, _FAILED, trace=debug)
    except Ended as exc:
        code = _say(exc, exc.code)
    except KeyboardInterrupt:  # while the command line was read
        code = _say("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has enough. What is still buffered must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _FAILED
    except OSError as exc:
        code = _say(f"{exc.filename or 'standard output'}: {exc.strerror or exc}", _FAILED, trace=debug)
    except Exception as exc:  # noqa: BLE001 - a person gets one line, whatever happens; --debug shows the rest
        code = _say(f"unexpected {type(exc).__name__}: {exc}; run again with --debug and report it", _FAILED, trace=debug)
    leave(code or 0)


def _log_to_stderr(level: int) -> None:
    """Write the log of our own package to standard error. Logs of other packages may hold signatures and tokens of requests."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("prefect_dist")
    logger.setLevel(level)
    logger.addHandler(handler)
    logger.propagate = False


def _say(message: object, code: int, *, trace: bool = False) -> int:
    if trace:
        traceback.print_exc()
    for line in message.lines if isinstance(message, Mistakes) else (message,):
        tell(line)
    return code


if __name__ == "__main__":
    main()
