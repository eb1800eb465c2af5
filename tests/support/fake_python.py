"""An interpreter that installs nothing, for tests of what installs."""

# It stands for both the user's Python and the one in .venv, and logs each pip call.
FAKE_PYTHON = """#!/usr/bin/env bash
case "$1 $2" in
  "-c "*version_info*) echo "${FAKE_VERSION:-3.11} $0" ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip")
    echo "${*:3}" >>calls.log
    for word; do [[ $word == /dev/fd/* ]] && grep -o '^[a-z0-9-]*==' "$word" >>installed.log; done
    [[ -z ${FAKE_FAILS_AT:-} || ${*:3} != *"$FAKE_FAILS_AT"* ]] ;;
esac
"""
