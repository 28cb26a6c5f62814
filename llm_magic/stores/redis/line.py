"""Connections that scripts keep from one call to the next.

The library looks at a connection before each command whether it is open still, and counts each for
its own statistics, which takes longer than a script. Here the command itself tells.
"""

from __future__ import annotations

from typing import Any


class Lines:
    """Connections of one client, from several threads.

    Args:
        library: The library.
        client: Its client of one server.
    """

    def __init__(self, library: Any, client: Any) -> None:
        self._library = library
        self._pool = client.connection_pool
        self._idle: list[Any] = []
        self._closed = False

    def ask(self, *words: Any) -> Any:
        """Sends a command and gives its answer; sends it twice where the connection broke.

        Raises:
            redis.RedisError: The server says so, does not answer, or is not there.
        """
        connection = self._take()
        for again in (True, False):
            try:
                connection.send_command(*words, check_health=False)
                answer = connection.read_response()
            except self._library.ResponseError:
                self._give(connection)
                raise
            except self._library.ConnectionError:
                connection.disconnect()
                if not again:
                    self._pool.release(connection)
                    raise
            except BaseException:
                # What comes late is nobody's answer.
                connection.disconnect()
                self._pool.release(connection)
                raise
            else:
                self._give(connection)
                return answer
        raise AssertionError

    def close(self) -> None:
        """Lets go of the connections, also of those that are in use, when they are not any more."""
        self._closed = True
        while self._idle:
            self._give(self._idle.pop())

    def _take(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            return self._pool.get_connection()

    def _give(self, connection: Any) -> None:
        if self._closed:
            connection.disconnect()
            self._pool.release(connection)
        else:
            self._idle.append(connection)
