#!/bin/sh
# Continuous integration in a few lines: every head of a branch is built, and the log is kept beside the sources.
#
#   DB=/mnt/datakit BRANCH=main BUILD='make -C rw' ./ci.sh
#
# Look at the results with `git fetch` and `git log --all`, or `cat $DB/branch/build-of-HEAD/ro/log`.
DB=${DB:-/db}
. "$(dirname "$0")/map.sh"

build() {
	echo "BUILD FAILED" > msg
	{ sh -c "${BUILD:-make -C rw}" && echo PASSED > msg; } 2>&1 | tee rw/log
}

map build "${BRANCH:-main}"
