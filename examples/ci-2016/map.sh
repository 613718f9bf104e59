# map COMMAND BRANCH: runs COMMAND for each head that BRANCH comes to have, now and from now on.
#
# What it makes of a head becomes a commit on top of that head, on the branch COMMAND-of-HEAD. A head that has such a
# branch is done: that is all the state there is. COMMAND runs in the transaction: files are in rw, the message in msg.
map() {
	while read -r HEAD; do
		[ -n "$HEAD" ] || continue
		RESULT="$DB/branch/$1-of-$HEAD"
		[ -d "$RESULT" ] && [ -n "$(cat "$RESULT/head")" ] && continue
		mkdir -p "$RESULT/transactions/map"
		echo "$HEAD" > "$RESULT/transactions/map/merge"
		(cd "$RESULT/transactions/map" && "$1")
		echo commit > "$RESULT/transactions/map/ctl"
	done < "$DB/branch/$2/head.live"
}
