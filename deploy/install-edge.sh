#!/usr/bin/env bash
# Makes this machine an edge client: user, virtual environment, enrolment, keys, units. Run again, it changes only what is missing or old.
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: install-edge.sh --superlink HOST:PORT [options] < invitation
       install-edge.sh --tunnel-certificate FOLDER

Makes this machine an edge client of a ComPEFT federation. The invitation (what `compeft clients invite` printed) is read from standard
input, so that it is in no process list; a machine that has enrolled needs none. Run it as root; run it again after an upgrade.

  --superlink HOST:PORT       proxy in front of Flower's SuperLink
  --source PATH-OR-NAME       what pip installs (default: compeft[client]; a checkout: '/srv/compeft[client]')
  --constraints FILE          versions that pip keeps to, such as constraints.txt of a checkout
  --python PATH               Python, 3.11 or newer, that every user may run (default: python3)
  --prefix DIR                virtual environment (default: /opt/compeft)
  --site /var/lib/NAME        site folder (default: /var/lib/compeft-edge)
  --config 'a=1 b=2'          what the app wants to know of this node, (default: partition-id=0)
  --watch NAME=DIR            also keep DIR at the newest version of expert NAME (compeft-watch@NAME.service); below
                              a folder of its own in /srv, such as /srv/experts/NAME; may be repeated
  --no-start                  install, but enable and start nothing
  --dry-run                   print what would be done, and do nothing
  --tunnel-certificate DIR    only make tunnel.pem and tunnel.crt in DIR, and end
  --help                      this text
USAGE
}

fail() {
    echo "install-edge.sh: $1" >&2
    exit "${2:-1}"
}

superlink="" source="compeft[client]" constraints="" python=python3 prefix=/opt/compeft site=/var/lib/compeft-edge config="partition-id=0" start=yes dry_run=no
watched=()
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
etc=/etc/compeft units=/etc/systemd/system

run() {
    if [ "$dry_run" = yes ]; then
        printf 'would run:'
        printf ' %q' "$@"
        printf '\n'
    else
        "$@"
    fi
}

write() { # PATH MODE: standard input becomes the file, if it is not that already
    if [ "$dry_run" = yes ]; then
        cat > /dev/null
        echo "would write: $1"
        return
    fi
    local new
    new=$(mktemp)
    cat > "$new"
    cmp -s "$new" "$1" || install -D -m "$2" "$new" "$1"
    rm -f "$new"
}

as_compeft() {
    run runuser -u compeft -- env HOME="$site" "$@"
}

tunnel_certificate() { # FOLDER: a certificate for this machine's loopback, of nobody else's concern
    [ -e "$1/tunnel.pem" ] && [ -e "$1/tunnel.crt" ] && return
    local made
    made=$(mktemp -d)
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 3650 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -addext keyUsage=critical,digitalSignature,keyCertSign \
        -keyout "$made/key" -out "$made/tunnel.crt" 2> /dev/null
    cat "$made/tunnel.crt" "$made/key" > "$made/tunnel.pem"
    install -m 0600 "$made/tunnel.pem" "$1/tunnel.pem"
    install -m 0644 "$made/tunnel.crt" "$1/tunnel.crt"
    rm -rf "$made"
}

while [ $# -gt 0 ]; do
    case "$1" in
        --help) usage; exit 0 ;;
        --dry-run) dry_run=yes; shift; continue ;;
        --no-start) start=no; shift; continue ;;
        --*) [ $# -gt 1 ] || fail "$1 needs a value; see --help" 2 ;;
    esac
    case "$1" in
        --superlink) superlink=$2 ;;
        --source) source=$2 ;;
        --constraints) constraints=$2 ;;
        --python) python=$2 ;;
        --prefix) prefix=$2 ;;
        --site) site=$2 ;;
        --config) config=$2 ;;
        --watch) watched+=("$2") ;;
        --tunnel-certificate) tunnel_certificate "$2"; exit 0 ;;
        *) fail "unknown option $1; see --help" 2 ;;
    esac
    shift 2
done

[[ "$superlink" =~ ^[A-Za-z0-9.-]+:[0-9]+$ ]] || fail "--superlink HOST:PORT is needed, got '$superlink'; see --help" 2
[[ "$site" =~ ^/var/lib/[a-z0-9-]+$ ]] || fail "--site /var/lib/NAME is needed, got '$site'" 2
for pair in "${watched[@]}"; do
    [[ "$pair" =~ ^[A-Za-z0-9][A-Za-z0-9._-]*=/srv/[^/]+/[^/]+$ ]] || fail "--watch NAME=/srv/FOLDER/NAME is needed, got '$pair'" 2
done
[ "$dry_run" = yes ] || [ "$(id -u)" = 0 ] || fail "run it as root"
for needed in "$python" nginx openssl ssh-keygen runuser; do
    command -v "$needed" > /dev/null || PATH="$PATH:/usr/sbin" command -v "$needed" > /dev/null ||
        fail "$needed is not installed: apt-get install python3-venv nginx-light openssl openssh-client util-linux"
done

echo "1. user compeft and its folder"
id compeft > /dev/null 2>&1 || run useradd --system --home-dir "$site" --shell /usr/sbin/nologin compeft
run install -d -o compeft -g compeft -m 0700 "$site"

echo "2. virtual environment $prefix"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$python is older than Python 3.11: name a newer one with --python"
[ -x "$prefix/bin/python" ] || run "$python" -m venv "$prefix"
as_compeft "$prefix/bin/python" -c pass 2> /dev/null ||
    fail "user compeft cannot run $prefix/bin/python, a link to $(readlink -f "$prefix/bin/python"): remove $prefix and name another with --python"
run "$prefix/bin/pip" install --quiet --upgrade ${constraints:+-c "$constraints"} "$source"

echo "3. enrolment"
if [ -e "$site/site.json" ]; then
    echo "$site has enrolled already"
elif [ "$dry_run" = yes ]; then
    echo "would enrol with the invitation on standard input"
else
    [ -t 0 ] && echo "paste the invitation:"
    invitation=$(grep -o -m 1 'cpi1_[A-Za-z0-9_-]*') || fail "no invitation on standard input: pipe in what 'compeft clients invite' printed"
    printf '%s\n' "$invitation" | as_compeft "$prefix/bin/compeft" enroll - --site "$site"
fi

echo "4. Flower's node key, and the certificate for loopback"
if [ ! -e "$site/node.key" ]; then
    as_compeft ssh-keygen -q -t ecdsa -b 384 -N "" -C compeft -f "$site/node.key"
fi
if [ "$dry_run" = yes ]; then
    echo "would make: $site/tunnel.pem $site/tunnel.crt"
else
    tunnel_certificate "$site"
    chown compeft:compeft "$site/tunnel.pem" "$site/tunnel.crt"
fi

echo "5. configuration in $etc"
write "$etc/edge.env" 0644 <<END
SUPERLINK=127.0.0.1:8001
CONFIG="$config"
END
sed -e "s|fl\.example:8444|$superlink|g; s|fl\.example|${superlink%:*}|g; s|/var/lib/compeft-edge|$site|g" "$here/proxy/edge.conf" |
    write "$etc/edge.conf" 0644

echo "6. units"
for unit in compeft-edge.service compeft-tunnel.service compeft-renew.service compeft-renew.timer compeft-watch@.service; do
    sed -e "s|/opt/compeft|$prefix|g; s|/var/lib/compeft-edge|$site|g; s|=compeft-edge$|=${site##*/}|" "$here/systemd/$unit" | write "$units/$unit" 0644
done
names=()
for pair in "${watched[@]}"; do
    write "$etc/watch-${pair%%=*}.env" 0644 <<< "DIRECTORY=${pair#*=}"
    run install -d -o compeft -g compeft -m 0755 "$(dirname "${pair#*=}")"
    names+=("compeft-watch@${pair%%=*}.service")
done

if [ "$start" = no ]; then
    echo "7. nothing is started: --no-start"
else
    echo "7. start"
    run systemctl daemon-reload
    run systemctl enable --quiet compeft-tunnel.service compeft-edge.service compeft-renew.timer "${names[@]}"
    run systemctl restart compeft-tunnel.service compeft-edge.service compeft-renew.timer "${names[@]}"
fi

echo "done. On the SuperLink's machine, register this node's key:"
echo "  flwr supernode register node.key.pub own --name $(uname -n)"
[ "$dry_run" = yes ] || cat "$site/node.key.pub"
