"""A relay in a process of its own, to be killed; its arguments are a conninfo and the address of NATS.

It says what it is doing whenever that changes, and where it stands when it gets SIGUSR1.
"""

import asyncio
import os
import signal
import sys
import time

from infra.nats.relay import RelayStatus, run_relay
from infra.postgres.log import PostgresLog
from infra.postgres.wakeups import WakeupListener
from tests.contract.relay_worlds import LOG_ID, mapper


async def main(conninfo: str, nats_url: str) -> None:
    log, status = PostgresLog(conninfo, wakeups=False), RelayStatus()
    telling = asyncio.create_task(tell(status))
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print_tasks)
    async with WakeupListener(conninfo) as wakeups:
        await run_relay(
            log,
            mapper().decode,
            nats_url,
            log_id=LOG_ID,
            partition=0,
            wakeups=wakeups,
            stop=asyncio.Event(),
            status=status,
        )
    telling.cancel()


async def tell(status: RelayStatus) -> None:
    told = ""
    while True:
        found = f"{status.state}: {status.problem}"
        if found != told:
            told = found
            print(f"{time.time():.2f} {os.getpid()} {found} ({status.position}/{status.head})", flush=True)
        await asyncio.sleep(0.02)


def print_tasks() -> None:
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stdout)
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
