# Source me in bash or zsh: `source tools/env.sh [jazzy|kilted] [--bare]` puts the command dsac-ros, the nodes and the
# messages into this shell. VENV=... names another virtual environment; --bare leaves the overlay out (for building).
#
# Sets DSAC_ROOT, DSAC_FLAVOUR (jazzy, kilted: the wheels; distro-NAME: a sourced ROS 2 distribution), DSAC_VENV, DSAC_INSTALL.
if [ -n "${ZSH_VERSION:-}" ]; then _dsac_shell=zsh; _dsac_me="${(%):-%x}"; else _dsac_shell=bash; _dsac_me="${BASH_SOURCE[0]}"; fi
export DSAC_ROOT="$(cd "$(dirname "$_dsac_me")/.." && pwd)"

_dsac_ros="${ROS:-}"; _dsac_bare=
for _dsac_argument in "$@"; do
  case "$_dsac_argument" in --bare) _dsac_bare=1 ;; *) _dsac_ros="$_dsac_argument" ;; esac
done

# A path list without the entries that lie in one of the given folders.
_dsac_without() {
  local list="$1" kept='' entry folder; shift
  while [ -n "$list" ]; do
    entry="${list%%:*}"; case "$list" in *:*) list="${list#*:}" ;; *) list='' ;; esac
    for folder in "$@"; do case "$entry/" in "$folder"/*) [ -n "$folder" ] && entry='' ;; esac; done
    [ -n "$entry" ] && kept="$kept${kept:+:}$entry"
  done
  printf '%s' "$kept"
}

if [ -z "$_dsac_ros" ] && [ -n "${ROS_DISTRO:-}" ] && [ -n "${AMENT_PREFIX_PATH:-}" ]; then
  export DSAC_FLAVOUR="distro-$ROS_DISTRO"
else
  export DSAC_FLAVOUR="${_dsac_ros:-jazzy}"
fi
case "$DSAC_FLAVOUR" in
  jazzy) export DSAC_VENV="${VENV:-$DSAC_ROOT/.venv}" ;;
  *) export DSAC_VENV="${VENV:-$DSAC_ROOT/.venv-$DSAC_FLAVOUR}" ;;
esac
export DSAC_INSTALL="$DSAC_ROOT/install/$DSAC_FLAVOUR"

if [ ! -f "$DSAC_VENV/bin/activate" ]; then
  echo "tools/env.sh: no virtual environment in $DSAC_VENV; run 'make setup' first" >&2
  return 1
fi
# What an earlier overlay, another venv of wheels or a distribution left behind would be loaded in place of ours.
case "$DSAC_FLAVOUR" in
  distro-*)
    for _dsac_name in AMENT_PREFIX_PATH CMAKE_PREFIX_PATH PYTHONPATH LD_LIBRARY_PATH; do
      eval "export $_dsac_name=\"\$(_dsac_without \"\${$_dsac_name:-}\" \"\$DSAC_ROOT/install\")\""
    done
    . "$DSAC_VENV/bin/activate"
    ;;
  *)
    for _dsac_name in PYTHONPATH LD_LIBRARY_PATH; do
      eval "export $_dsac_name=\"\$(_dsac_without \"\${$_dsac_name:-}\" \"\$DSAC_ROOT/install\" \"\${VIRTUAL_ENV:-}\" \
        \"\${ROS_DISTRO:+/opt/ros/\$ROS_DISTRO}\")\""
      eval "[ -n \"\$$_dsac_name\" ] || unset $_dsac_name"
    done
    unset ROS_DISTRO RMW_IMPLEMENTATION _ROS_WHEELS_BOOTSTRAP_COMPLETE
    . "$DSAC_VENV/bin/activate"
    export AMENT_PREFIX_PATH="$DSAC_VENV" CMAKE_PREFIX_PATH="$DSAC_VENV"
    ;;
esac
if [ -z "$_dsac_bare" ]; then
  if [ -f "$DSAC_INSTALL/local_setup.$_dsac_shell" ]; then
    . "$DSAC_INSTALL/local_setup.$_dsac_shell"
  else
    echo "tools/env.sh: the messages are not built for $DSAC_FLAVOUR; run 'make setup ROS=$DSAC_FLAVOUR' first" >&2
    return 1
  fi
fi
unset _dsac_argument _dsac_bare _dsac_me _dsac_name _dsac_ros _dsac_shell
