"""Prefect's embedded server, started where Ctrl-C does not reach it."""

import signal
import threading


def start_embedded_server() -> None:
    """Start the server that Prefect would start itself at its first call; nothing to do where an API is configured.

    A terminal sends Ctrl-C to every process of its group. A server that dies of it leaves Prefect's client retrying
    for a minute. A signal mask is inherited: the server starts from a thread that blocks SIGINT, and so never sees
    one; Prefect stops it at exit with SIGTERM, as ever. Raises what starting it raises.
    """
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if settings.api.url or not settings.server.ephemeral.enabled:
        return
    errors: list[Exception] = []

    def start() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            SubprocessASGIServer().start()
        except Exception as error:  # raised below, in the thread that asked
            errors.append(error)

    starter = threading.Thread(target=start, name="embedded server", daemon=True)
    starter.start()
    starter.join()
    if errors:
        raise errors[0]
