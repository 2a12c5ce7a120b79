#!/usr/bin/env bash
# Runs what the aggregator's image runs, without a container engine: a fresh virtual environment with the same packages, then a real
# aggregator with TLS that is asked for its health, its report and a backup. Takes some minutes, needs the package index.
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: deploy/check.sh [--keep DIR] [--extras LIST]

Installs this checkout into a fresh virtual environment as deploy/docker/aggregator.Dockerfile does, shows that neither torch nor peft is in
it, and runs: compeft --help, ca init, serve, health, clients, report, audit verify, backup, restore.

  --keep DIR       make the environment in DIR, and keep it
  --extras LIST    extras to install (default: server,postgres,object-store)
  --help           this text
USAGE
}

extras=server,postgres,object-store keep=""
while [ $# -gt 0 ]; do
    case "$1" in
        --help) usage; exit 0 ;;
        --keep) keep=$2; shift 2 ;;
        --extras) extras=$2; shift 2 ;;
        *) echo "unknown option $1; see --help" >&2; exit 2 ;;
    esac
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
venv=${keep:-$work/venv}
server=""
trap '[ -z "$server" ] || kill "$server" 2> /dev/null || true; rm -rf "$work"' EXIT

say() { printf '\n== %s\n' "$*"; }

say "install compeft[$extras] into $venv"
python3 -m venv "$venv"
"$venv/bin/pip" install -qq --disable-pip-version-check -c "$root/constraints.txt" "${root}[$extras]"
PATH=$venv/bin:$PATH
export PATH NUMBA_CACHE_DIR=$work/numba
cd "$work"

say "what is in it"
python -c "
import importlib.util as u
assert not [m for m in ('torch', 'peft', 'transformers') if u.find_spec(m)], 'a machine learning framework was installed'
print('no torch, no peft, no transformers')"
du -sh "$venv" | cut -f1

say "compeft --help"
compeft --help | sed -n '/Commands:/,$p' | wc -l

say "an aggregator with TLS"
compeft ca init --data data --host localhost
compeft serve --data data --port 0 --enroll-port 0 --format json > said 2> log &
server=$!
for _ in $(seq 100); do grep -q '"address"' said && break; sleep 0.1; done
port=$(python -c "import json; print(json.loads(open('said').readline())['address'].rpartition(':')[2])")
compeft health "localhost:$port" --data data --wait 20
compeft clients invite reader-1 --role reader --data data > /dev/null
compeft clients list --data data
compeft policy list --data data
compeft experts list --data data
compeft report --data data --expert nothing || [ $? = 7 ]
compeft audit verify --data data
compeft backup --data data -o backup.tar
compeft restore backup.tar --data restored

say "it ends in order"
kill -TERM "$server"
wait "$server"
server=""
echo "all of it worked"
