"""The encoder by torch, as the localizer runs it, and by the CPU back ends that are installed: would one of them pay?

    pip install openvino==2026.4.1 onnxruntime==1.32.0 onnx==1.23.2 onnxscript==0.7.2
    python -m benchmarks.encoder_backends [--threads 2]
"""
from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks import stages
from dsac_ros.networks.encoder import Encoder, shared_encoder

IMAGE = (1, 3, *stages.IMAGE)
ROUNDS = 60
logger = logging.getLogger(__name__)
BackEnd = Callable[[np.ndarray], np.ndarray]  # IMAGE uint8 -> features


def by_torch(encoder: Encoder, threads: int) -> BackEnd:
    torch.set_num_threads(threads)

    @torch.inference_mode()
    def run(image: np.ndarray) -> np.ndarray:
        return encoder(torch.from_numpy(image)).numpy()
    return run


def by_openvino(encoder: Encoder, threads: int) -> BackEnd:
    import openvino

    model = openvino.convert_model(encoder, example_input=torch.zeros(IMAGE, dtype=torch.uint8), input=[IMAGE])
    # Unless told otherwise it computes in bfloat16 where the processor can: twice as fast, and features off by a twentieth.
    compiled = openvino.compile_model(model, 'CPU', {'INFERENCE_NUM_THREADS': threads, 'PERFORMANCE_HINT': 'LATENCY',
                                                     'INFERENCE_PRECISION_HINT': 'f32'})
    return lambda image: compiled(image)[0]


def by_onnxruntime(encoder: Encoder, threads: int) -> BackEnd:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'encoder.onnx'
        torch.onnx.export(encoder, (torch.zeros(IMAGE, dtype=torch.uint8),), path, input_names=['image'], verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options)
    return lambda image: session.run(None, {'image': image})[0]


BACK_ENDS = {'torch': by_torch, 'OpenVINO': by_openvino, 'ONNX Runtime': by_onnxruntime}


def there(threads: int) -> dict[str, BackEnd]:
    """Those whose packages are installed."""
    found: dict[str, BackEnd] = {}
    for name, make in BACK_ENDS.items():
        try:
            found[name] = make(shared_encoder('cpu'), threads)
        except ImportError as error:
            logger.warning('left out: %s; see the head of this file', error)
    return found


def race(back_ends: dict[str, BackEnd], image: np.ndarray, rounds: int = ROUNDS) -> dict[str, tuple[float, float, float]]:
    """Median wall and CPU milliseconds, taken in turn, and the largest difference to torch over the largest feature."""
    expected = back_ends['torch'](image)
    off = {name: float(np.abs(run(image) - expected).max() / np.abs(expected).max()) for name, run in back_ends.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in back_ends}
    for _ in range(rounds):
        for name, run in back_ends.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run(image)
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: (*(1e3 * np.median(taken, 0)).tolist(), off[name]) for name, taken in times.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.encoder_backends', description=__doc__.splitlines()[0])
    parser.add_argument('--threads', type=int, default=1)
    threads = parser.parse_args(arguments).threads
    image = np.random.default_rng(0).integers(0, 256, IMAGE, np.uint8)
    print(f'{IMAGE[3]}x{IMAGE[2]}, {threads} threads\n\n| | wall, ms | CPU, ms | off by |\n|---|---|---|---|')
    for name, (wall, cpu, off) in race(there(threads), image).items():
        print(f'| {name} | {wall:.1f} | {cpu:.1f} | {off:.1e} |')
    return 0


if __name__ == '__main__':
    sys.exit(main())
