#!/usr/bin/env bash
# Called by `make demo`: renders a room, maps it, and localises an unseen trajectory through the real node over DDS.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT="${OUT:-demo_output}"
step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

# The folder holds nothing but the output of the demo; the mark keeps OUT=~ from costing somebody a home.
if [ -e "$OUT" ]; then
  [ -f "$OUT/.demo" ] || { echo "$OUT exists and is not of an earlier demo; choose another: OUT=folder make demo" >&2; exit 1; }
  rm -rf "$OUT"
fi
mkdir -p "$OUT"
touch "$OUT/.demo"

step 'a room, seen on a mapping trajectory'
dsac-ros synth --room 1 --trajectory 1 --frames 900 --out "$OUT/mapping_bag"
step 'the same room on another trajectory'
dsac-ros synth --room 1 --trajectory 2 --frames 100 --out "$OUT/unseen_bag"
step 'mapping'
dsac-ros map "$OUT/mapping_bag" --out "$OUT/room.dsacmap" --minutes 2
step 'localising the unseen trajectory: node in its own process, images over DDS at their true rate'
dsac-ros evaluate "$OUT/room.dsacmap" "$OUT/unseen_bag" --live --out "$OUT/results"
printf '\nreport: %s\n' "$(cd "$OUT" && pwd)/results/report.html"
