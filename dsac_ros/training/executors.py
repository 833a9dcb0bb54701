"""Many rooms at once: one job per process of this machine, or per task of a Ray cluster.

A job is done when its map is there, so an interrupted run goes on where it was. What a job raises is its own failure; a worker that dies
without a word (killed, out of memory) is another matter and is tried again.
"""
from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from dsac_ros.errors import ConfigError, DsacError

EXECUTORS = ('local', 'ray')
TRIES = 3  # of a job whose worker dies
Progress = Callable[[str, str], None]  # (name of a job, what became of it: '' where it is done, else why not)


def run_jobs(function: Callable[[Any], object], jobs: Mapping[str, Any], finished: Callable[[str], bool], executor: str = 'local',
             workers: int = 0, progress: Progress = lambda name, error: None) -> dict[str, str]:
    """Call function(argument) for each job that is not finished; name -> error of those that failed, in words.

    Args:
        function: of a module, so that a worker can import it. jobs: name -> argument, which can be pickled.
        finished: whether a job of that name was done before. executor: local (processes) or ray.
        workers: jobs at a time, or 0 (workers_of).
        progress: called in this process when a job ends.

    SIGINT waits for the jobs that run, which end early on it and keep what they have, and starts no others. Raises ConfigError where Ray is
    asked for and not there, and for less than no workers.
    """
    if executor not in EXECUTORS:
        raise ConfigError(f'executor: expected {" or ".join(EXECUTORS)}, found {executor!r}')
    open_jobs = {name: argument for name, argument in jobs.items() if not finished(name)}
    return (_run_local if executor == 'local' else _run_ray)(function, open_jobs, workers_of(workers), progress)


def workers_of(workers: int) -> int:
    """The number itself; for 0 one per two processors, since a head trains with two threads. Raises ConfigError below 0."""
    if workers < 0:
        raise ConfigError(f'workers: expected 0 (one for every two processors) or more, found {workers}')
    return workers or max(1, (os.cpu_count() or 1) // 2)


def _run_local(function: Callable[[Any], object], jobs: Mapping[str, Any], workers: int, progress: Progress) -> dict[str, str]:
    # Not forked: threads of torch and OpenCV do not survive that. Not a pool: it breaks as a whole when one worker is killed.
    context = multiprocessing.get_context('spawn')
    waiting, failed = deque((name, 1) for name in jobs), {}
    running: dict[Connection, tuple[str, int, BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                name, attempt = waiting.popleft()
                answers, sender = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(function, jobs[name], sender), name=name)
                process.start()
                sender.close()
                running[answers] = name, attempt, process
            for answers in wait(list(running)):
                name, attempt, process = running.pop(answers)
                error = _answer(answers)
                process.join()
                if error is None and attempt < TRIES:
                    waiting.append((name, attempt + 1))
                    continue
                if error is None:
                    error = f'its worker ended {TRIES} times without an answer, the last time with exit code {process.exitcode}'
                if error:
                    failed[name] = error
                progress(name, error)
    except KeyboardInterrupt:
        for _, _, process in running.values():
            process.join()
        raise
    finally:
        for _, _, process in running.values():
            process.terminate()
    return failed


def _work(function: Callable[[Any], object], argument: Any, answers: Connection) -> None:
    answers.send(_tried(function, argument))


def _tried(function: Callable[[Any], object], argument: Any) -> str:
    """'' where it went well, else why it did not."""
    try:
        function(argument)
    except DsacError as error:
        return str(error) or type(error).__name__
    except KeyboardInterrupt:
        return 'interrupted'
    except Exception as error:
        return f'{type(error).__name__}: {error}'
    return ''


def _answer(answers: Connection) -> str | None:
    """None of a worker that died."""
    try:
        return answers.recv()
    except EOFError:
        return None
    finally:
        answers.close()


def _run_ray(function: Callable[[Any], object], jobs: Mapping[str, Any], workers: int, progress: Progress) -> dict[str, str]:
    try:
        import ray
    except ImportError as error:
        raise ConfigError('--executor ray: Ray is not installed; pip install "dsac_ros[ray]", or leave --executor local') from error
    own = not ray.is_initialized()
    if own:
        # A cluster where RAY_ADDRESS names one, else one of this machine for as long as the jobs take.
        ray.init(log_to_driver=False, include_dashboard=False, **({} if os.environ.get('RAY_ADDRESS') else {'num_cpus': workers}))
    failed = {}
    try:
        remote = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_tried)
        running = {remote.remote(function, argument): name for name, argument in jobs.items()}
        while running:
            (reference,), _ = ray.wait(list(running), num_returns=1)
            name = running.pop(reference)
            try:
                error = ray.get(reference)
            except ray.exceptions.RayError as raised:
                error = f'its worker ended {TRIES} times without an answer: {" ".join(str(raised).split()):.200}'
            if error:
                failed[name] = error
            progress(name, error)
    finally:
        if own:
            ray.shutdown()
    return failed
