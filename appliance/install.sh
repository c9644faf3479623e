#!/bin/sh
# Installs Postern from the folder that this file is in, for systems without a package of their own.
#
#   ./install.sh               installs or upgrades: /usr/local/bin/postern, /etc/postern, a systemd unit where there is systemd
#   ./install.sh --uninstall   takes it away again; settings, certificates and the audit log stay
#   ./install.sh --purge       takes those away too, and the user
set -eu
# Whatever root's own is: others have to read what is installed.
umask 022

here=$(cd "$(dirname "$0")" && pwd)
binary=/usr/local/bin/postern
unit=/etc/systemd/system/postern.service
share=/usr/local/share/postern
config=/etc/postern/postern.toml

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

has_systemd() {
    [ -d /run/systemd/system ]
}

make_user() {
    if getent passwd postern >/dev/null 2>&1; then
        return
    fi
    if command -v useradd >/dev/null; then
        useradd --system --user-group --home-dir /var/lib/postern --no-create-home --shell /usr/sbin/nologin postern
    elif command -v adduser >/dev/null; then
        addgroup -S postern && adduser -S -D -H -h /var/lib/postern -s /sbin/nologin -G postern postern
    else
        fail "neither useradd nor adduser is here: make a system user postern with a group postern"
    fi
}

install_all() {
    if command -v dpkg-query >/dev/null && dpkg-query -W -f='${Status}' postern 2>/dev/null | grep -q 'ok installed'; then
        fail "the Debian package is installed here: upgrade that (apt install ./postern_*.deb)"
    fi
    make_user
    mkdir -p /usr/local/bin /etc/postern "$share"
    # Put beside and moved: a server that runs keeps its file.
    install -m 755 "$here/postern" "$binary.new"
    mv "$binary.new" "$binary"
    install -m 644 "$here/config.example.toml" /etc/postern/config.example.toml
    for file in 99-postern.conf postern.nft postern.toml; do
        install -m 644 "$here/$file" "$share/$file"
    done
    cp -r "$here/prometheus" "$here/grafana" "$share/"
    mkdir -p /usr/local/share/man/man1 /usr/local/share/bash-completion/completions
    install -m 644 "$here/postern.1.gz" /usr/local/share/man/man1/postern.1.gz
    install -m 644 "$here/postern.bash" /usr/local/share/bash-completion/completions/postern
    if [ ! -e "$config" ]; then
        domain=$(hostname -f 2>/dev/null || hostname)
        keys=$("$binary" keys)
        (umask 077 && sed -e "s|@domain@|$domain|" -e "s|^@keys@\$|$keys|" "$here/postern.toml" >"$config.new")
        chown root:postern "$config.new"
        chmod 640 "$config.new"
        mv "$config.new" "$config"
    fi
    if has_systemd; then
        sed "s|/usr/bin/postern|$binary|" "$here/postern.service" >"$unit"
        systemctl daemon-reload
        restart_if_it_fits
        echo "Postern is installed: set server.domain in $config, then"
        echo "  postern run --check && systemctl enable --now postern"
    else
        # What the unit would make. /run is empty after a boot: whoever starts the service makes that one again.
        install -d -o postern -g postern -m 750 /var/lib/postern /var/log/postern
        install -d -o postern -g postern -m 755 /run/postern
        echo "Postern is installed: set server.domain in $config, then start as the user postern, with CAP_NET_BIND_SERVICE,"
        echo "  $binary run --config $config"
    fi
}

# A server that runs is not stopped for one that would not start.
restart_if_it_fits() {
    if ! systemctl is-active --quiet postern.service; then
        return
    fi
    if runuser -u postern -- "$binary" run --check --config "$config"; then
        systemctl --no-block try-restart postern.service
    else
        echo "The running server was not restarted: the new one does not take $config (see above)." >&2
    fi
}

uninstall() {
    if has_systemd && [ -e "$unit" ]; then
        systemctl disable --now postern.service || true
    fi
    rm -f "$binary" "$unit" /usr/local/share/man/man1/postern.1.gz /usr/local/share/bash-completion/completions/postern
    rm -rf "$share"
    if has_systemd; then
        systemctl daemon-reload
    fi
}

purge() {
    uninstall
    rm -rf /run/postern /etc/postern /var/lib/postern /var/log/postern
    if getent passwd postern >/dev/null 2>&1; then
        userdel postern 2>/dev/null || deluser postern
    fi
}

[ "$(id -u)" = 0 ] || fail "root is needed: it makes a user, and files in /usr/local and /etc"
case "${1:-}" in
"") install_all ;;
--uninstall) uninstall ;;
--purge) purge ;;
*) fail "unknown: $1; accepted: nothing, --uninstall, --purge" ;;
esac
