#!/usr/bin/env bash
# The server of a facility without containers and without systemd: PostgreSQL, the Prefect server
# and workers, in one folder, on loopback, behind a password.
#
#   deployments/by_hand.sh start  [FOLDER]   start what is not running; prints where
#   deployments/by_hand.sh stop   [FOLDER]   end all of it, workers first
#   deployments/by_hand.sh status [FOLDER]   say what is running
#   deployments/by_hand.sh settings [FOLDER] only write facility.env (for compose.yaml and systemd)
#
# FOLDER (default: ~/patchworks-facility) holds facility.env (settings and the password, readable
# by its owner alone), the database, logs and process ids. What ends by itself is started again.
# `set -a; . FOLDER/facility.env; set +a` makes the `prefect` and `patchworks` commands of a
# terminal use this server.
set -euo pipefail
shopt -s nullglob

action=${1:-}
folder=$(realpath -m "${2:-$HOME/patchworks-facility}")
bin=$(dirname "$(command -v "${PATCHWORKS_PYTHON:-python3}")")
settings=$folder/facility.env
owner=() as_postgres=()

die() { echo "by_hand.sh: $*" >&2; exit 1; }

postgres_bin() {  # Debian keeps PostgreSQL's programs out of PATH
  local found
  found=$(find /usr/lib/postgresql -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -1)
  [ -n "$found" ] || found=$(pg_config --bindir 2>/dev/null || true)
  [ ! -x "$found/initdb" ] || echo "$found"
}

secret() { head -c 24 /dev/urandom | base64 | tr '+/' '-_'; }

write_settings() {
  local password database port home
  home=$(printf %s "$folder/prefect" | sed 's/[\\"$`]/\\&/g')  # it stands in double quotes
  password=$(secret) database=$(secret) port=${PATCHWORKS_DATABASE_PORT:-5433}
  (umask 077 && cat > "$settings.new" <<EOF
# Settings of this facility's server; read by by_hand.sh, and by terminals that use the server.
PREFECT_API_URL=http://127.0.0.1:${PATCHWORKS_PORT:-4200}/api
PREFECT_API_AUTH_STRING=facility:$password
PREFECT_SERVER_API_AUTH_STRING=facility:$password
PREFECT_SERVER_API_HOST=127.0.0.1
PREFECT_SERVER_API_PORT=${PATCHWORKS_PORT:-4200}
PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql+asyncpg://patchworks:$database@127.0.0.1:$port/prefect
PATCHWORKS_DATABASE_PASSWORD=$database
PATCHWORKS_DATABASE_PORT=$port
# Events are kept for a week. What the server has received is written down at once: what it has not
# written when it stops is lost, and runs would look as if they had not ended.
PREFECT_SERVER_EVENTS_RETENTION_PERIOD=7d
PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE=1000
PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL=1
PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE=1000
PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL=0.5
PREFECT_SERVER_ALLOW_EPHEMERAL_MODE=false
PREFECT_SERVER_ANALYTICS_ENABLED=false
PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT=false
# A run outlasts a restart of the server or of PostgreSQL.
PREFECT_CLIENT_MAX_RETRIES=10
PREFECT_CLIENT_RETRY_EXTRA_CODES=500
DO_NOT_TRACK=1
PREFECT_HOME="$home"
# Workers that by_hand.sh starts: POOL:FLOW RUNS AT A TIME, separated by spaces.
PATCHWORKS_WORKERS="${PATCHWORKS_WORKERS:-light:20 cpu:2}"
EOF
  )
  mv "$settings.new" "$settings"
}

# When a process started: its number alone may by now be another's, after a reboot above all.
since() { echo "$(cat /proc/sys/kernel/random/boot_id) $(sed 's/.*) //' "/proc/$1/stat" | cut -d' ' -f20)"; }

is_running() {
  local pid file=$folder/run/$1
  [ -s "$file.pid" ] || return 1
  pid=$(cat "$file.pid")
  kill -0 "$pid" 2>/dev/null || return 1
  if [ -s "$file.since" ]; then [ "$(cat "$file.since")" = "$(since "$pid")" ]; return; fi
  # Started by a version that kept the number alone: known by its command, that of `keep`.
  [[ $(tr '\0\n' '  ' < "/proc/$pid/cmdline") == *"starting it again in 5 s"*"done $1 "* ]]
}

# Start a program in a session of its own, and again when it ends, until `end` says it is over.
# $2: the signal that ends it in good order.
keep() {
  local name=$1 signal=$2; shift 2
  if is_running "$name"; then echo "$name runs already"; return; fi
  setsid bash -c '
    signal=$1; shift
    trap "kill -\$signal \$child 2>/dev/null; wait \$child; exit 0" TERM INT
    while true; do
      "$@" & child=$!
      wait "$child" || true
      echo "$(date "+%F %T") ended; starting it again in 5 s"
      sleep 5 & wait $!
    done' "$name" "$signal" "$@" </dev/null >>"$folder/log/$name.log" 2>&1 &
  since $! > "$folder/run/$name.since"
  echo $! > "$folder/run/$name.pid"
  echo "$name started; log: $folder/log/$name.log"
}

end() {
  local name=$1 pid
  is_running "$name" || return 0
  pid=$(cat "$folder/run/$name.pid")
  kill -TERM "$pid"
  for _ in $(seq 300); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  kill -KILL -- "-$pid" 2>/dev/null || true
  rm -f "$folder/run/$name".{pid,since}
  echo "$name ended"
}

# Make the database where there is none, and start it; each step may have been the last one before.
start_database() {
  export PGPASSWORD=$PATCHWORKS_DATABASE_PASSWORD
  [ -d "$folder/postgres" ] || make_database
  keep postgres INT "${as_postgres[@]}" "$postgres/postgres" -D "$folder/postgres"
  local here=(-h 127.0.0.1 -p "$PATCHWORKS_DATABASE_PORT" -U patchworks)
  for _ in $(seq 60); do "$postgres/pg_isready" -q "${here[@]}" && break; sleep 1; done
  "$postgres/pg_isready" -q "${here[@]}" ||
    die "PostgreSQL does not start; see $folder/log/postgres.log"
  "$postgres/psql" "${here[@]}" -d prefect -c "select 1" >/dev/null 2>&1 ||
    "$postgres/createdb" "${here[@]}" prefect
  unset PGPASSWORD
}

make_database() {
  rm -rf "$folder/postgres.new"
  install -d -m 700 "${owner[@]}" "$folder/postgres.new"
  install -m 600 "${owner[@]}" /dev/null "$folder/run/password"
  echo "$PATCHWORKS_DATABASE_PASSWORD" > "$folder/run/password"
  "${as_postgres[@]}" "$postgres/initdb" -D "$folder/postgres.new" --username=patchworks --encoding=UTF8 \
    --auth=scram-sha-256 --pwfile="$folder/run/password" >"$folder/log/initdb.log" 2>&1 ||
    die "initdb failed; see $folder/log/initdb.log"
  rm "$folder/run/password"
  cat >> "$folder/postgres.new/postgresql.conf" <<EOF
listen_addresses = '127.0.0.1'
port = $PATCHWORKS_DATABASE_PORT
unix_socket_directories = ''
EOF
  mv "$folder/postgres.new" "$folder/postgres"
}

start() {
  if [ "$(id -u)" = 0 ]; then  # PostgreSQL refuses root
    owner=(-o postgres) as_postgres=(setpriv --reuid=postgres --regid=postgres --init-groups --)
  fi
  postgres=$(postgres_bin)
  [ -n "$postgres" ] || die "PostgreSQL is not installed: apt-get install postgresql"
  [ -x "$bin/prefect" ] || die "no prefect beside $bin/python3: activate the environment of patchworks first"
  mkdir -p "$folder"/{run,log}
  [ -f "$settings" ] || write_settings
  set -a; . "$settings"; set +a
  start_database
  keep server TERM "$bin/prefect" server start
  for _ in $(seq 120); do "$bin/python3" -c '
import os, urllib.request
urllib.request.urlopen(os.environ["PREFECT_API_URL"] + "/health", timeout=2)' 2>/dev/null && break; sleep 1; done
  for worker in $PATCHWORKS_WORKERS; do
    pool=${worker%%:*} limit=${worker##*:}
    keep "worker-$pool" TERM "$bin/prefect" worker start --pool "$pool" --type process --limit "$limit" --name "$pool@$(hostname)"
  done
  echo "Prefect UI: ${PREFECT_API_URL%/api} (user and password: PREFECT_API_AUTH_STRING in $settings)"
}

stop() {
  for pid in "$folder"/run/worker-*.pid; do
    [ ! -e "$pid" ] || end "$(basename "$pid" .pid)"
  done
  end server
  end postgres
}

settings() {
  mkdir -p "$folder"
  [ ! -e "$settings" ] || die "$settings is there already; edit it, or remove it first"
  write_settings
  echo "$settings"
}

status() {
  local name
  for pid in "$folder"/run/*.pid; do
    name=$(basename "$pid" .pid)
    if is_running "$name"; then echo "$name runs"; else echo "$name is stopped"; fi
  done
}

case $action in
  start | stop | status | settings) "$action" ;;
  *) sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
