# Put another release in the place of the one that uses the data, or take it back. The caller sets:
#   data, file, state, keep, seconds, name, reference, embedder, project; the new Compose file is at $file.new.
# A run that is cut off leaves $state/pending; the next one goes on from there.
points=$data/restore-points
compose="docker compose --progress quiet --project-name $project --file $file"
tables='users workspaces workspace_users workspace_chats workspace_threads workspace_documents document_vectors
api_keys system_settings'
say() { echo "$*" >&2; }

count() { # database: one line a table, -1 for one that is not there
    for table in $tables; do
        number=$(sqlite3 -cmd '.timeout 10000' $2 "$1" "SELECT count(*) FROM $table" 2>/dev/null) || number=-1
        echo "$table $number"
    done
}

note() { # what the data is used with from now on
    printf 'reference %s\nimage_id %s\nembedder %s\n' "$reference" \
        "$(docker image inspect --format '{{.Id}}' "$reference")" "$embedder" >"$state/data.new" &&
        mv "$state/data.new" "$state/data"
}

take_restore_point() {
    rm -rf "$points"/*.part
    mkdir -p -m 700 "$points" || return 1
    need=$(du -sk "$data/storage" | cut -f1)
    free=$(df -Pk "$points" | awk 'NR == 2 { print $4 }')
    if [ "$free" -lt $((need + need / 10 + 65536)) ]; then
        say "no room for a restore point: $points has $((free / 1024)) MiB, the data is $((need / 1024)) MiB and some" \
            "are kept free. Nothing was changed and the old release goes on; make room, or move data_dir."
        return 1
    fi
    # Stopped and not merely locked: the vector store and the documents must be of the same moment as the database.
    # The container may be gone, or be one from before gpurack.
    ids=$(docker ps --quiet --filter "volume=$data/storage"); test -z "$ids" || docker stop --time 60 $ids >/dev/null || return 1
    old=$(sed -n 's/^image_id //p' "$state/data" 2>/dev/null)
    part=$points/$name.part
    mkdir -m 700 "$part" && cp -a --reflink=auto "$data/storage" "$data/server.env" "$part/" &&
        { test ! -f "$file" || cp -p "$file" "$part/compose.yaml"; } && echo "$old" >"$part/image" &&
        check=$(sqlite3 "$part/storage/anythingllm.db" 'PRAGMA quick_check' 2>&1) || check=${check:-copy failed}
    if [ "$check" != ok ]; then
        say "the restore point is no good ($check): nothing was changed, the old release is started again."
        rm -rf "$part"
        test -z "$ids" || docker start $ids >/dev/null
        return 1
    fi
    count "$part/storage/anythingllm.db" >"$part/counts" && sync -f "$part" && mv "$part" "$points/$name"
}

lost_rows() { # one word a table that has fewer rows than the restore point
    count "$data/storage/anythingllm.db" -readonly >"$state/counts.now"
    while read -r table before; do
        now=$(sed -n "s/^$table //p" "$state/counts.now")
        [ "$now" -ge "$before" ] || printf ' %s:%s->%s' "$table" "$before" "$now"
    done <"$points/$name/counts"
    rm -f "$state/counts.now"
}

switch() { # sets $why when the new release is not to be kept
    mv "$file.new" "$file"
    if ! $compose up --detach --remove-orphans --wait --wait-timeout "$seconds"; then
        why="not healthy after $seconds s"
        say "the last log lines of $reference:"
        $compose logs --no-color --tail 20 >&2
        return 1
    fi
    lost=$(lost_rows)
    [ -z "$lost" ] || { why="rows are missing in$lost"; return 1; }
}

take_back() {
    echo "$name rollback $why" >"$state/pending" && sync "$state/pending"
    $compose down --timeout 30 >&2
    find "$data/storage" -mindepth 1 -delete && cp -a "$points/$name/storage/." "$data/storage/" &&
        cp -p "$points/$name/server.env" "$data/server.env" || return 1
    if [ ! -f "$points/$name/compose.yaml" ]; then
        say "the data is as it was; what ran it before gpurack is to be started by hand."
        return 0
    fi
    cp -p "$points/$name/compose.yaml" "$file" || return 1
    old=$(cat "$points/$name/image")
    was=$(sed -n 's/^    image: "\(.*\)"$/\1/p' "$file")
    # The new image may have taken the old one's name.
    case $was in *@*) ;; *) test -z "$old" || docker tag "$old" "$was" || return 1 ;; esac
    $compose up --detach --remove-orphans --wait --wait-timeout "$seconds" || {
        $compose logs --no-color --tail 20 >&2
        return 1
    }
}

why=
phase=$(cut -d' ' -f2 "$state/pending" 2>/dev/null)
if [ -z "$phase" ]; then
    take_restore_point || { rm -f "$file.new"; exit 1; }
    echo "$name switch" >"$state/pending" && sync "$state/pending" || exit 1
else
    name=$(cut -d' ' -f1 "$state/pending")
    say "an upgrade was cut off; going on with restore point $points/$name."
fi
if [ "$phase" = rollback ]; then
    why=$(cut -d' ' -f3- "$state/pending")
    rm -f "$file.new"
elif switch; then
    note && rm -f "$state/pending" "$state/refused"
    for old in $(ls -1 "$points" | grep -v '\.part$' | sort | head -n -"$keep"); do rm -rf "${points:?}/$old"; done
    exit 0
fi
id=$(docker image inspect --format '{{.Id}}' "$reference")
if take_back; then
    echo "$id $reference, $(date --utc +%Y-%m-%dT%H:%MZ): $why" >"$state/refused"
    rm -f "$state/pending"
    say "UPGRADE TAKEN BACK: $reference: $why. The host serves the release and the data of before" \
        "($points/$name). The same release is not tried again; see docs/anythingllm.md, Upgrading."
else
    say "UPGRADE FAILED, AND SO DID THE WAY BACK: $reference: $why. The data of before is in $points/$name;" \
        "the next run goes on with the way back. See docs/anythingllm.md, Upgrading."
fi
exit 1
