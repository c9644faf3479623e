#!/bin/sh
# Makes what is handed out of a built binary: the Debian package and the archive for other systems, in target/dist.
#
#   appliance/pack.sh release        (or dev: what tests install)
set -eu
cd "$(dirname "$0")/.."

profile=$1
target=x86_64-unknown-linux-gnu
case "$profile" in
release) built=target/$target/release ;;
dev) built=target/$target/debug ;;
*) echo "pack.sh: release or dev" >&2; exit 1 ;;
esac
binary=$built/postern
dist=target/dist
version=$("$binary" --version | cut -d' ' -f2)

# One file to copy: it must need no other.
if ! file -b "$binary" | grep -Eq 'static-pie linked|statically linked' || ldd "$binary" 2>&1 | grep -q '=>'; then
    echo "pack.sh: $binary is not statically linked: $(file -b "$binary")" >&2
    exit 1
fi

rm -rf "$dist"
mkdir -p "$dist"
"$binary" man >"$dist/postern.1"
gzip -9nk "$dist/postern.1"
"$binary" completions bash >"$dist/postern.bash"
"$binary" completions zsh >"$dist/_postern"
"$binary" completions fish >"$dist/postern.fish"

fast=
[ "$profile" = release ] || fast=--fast
target/tools/bin/cargo-deb deb --no-build --profile "$profile" --target "$target" --output "$dist/" $fast --quiet

name=postern-$version-x86_64
folder=$dist/$name
mkdir "$folder"
strip -o "$folder/postern" "$binary"
cp appliance/install.sh appliance/postern.toml appliance/99-postern.conf appliance/postern.nft config.example.toml \
    systemd/postern.service LICENSE README.md "$dist/postern.1.gz" "$dist/postern.bash" "$folder/"
cp -r appliance/prometheus appliance/grafana "$folder/"
tar --sort=name --owner=0 --group=0 --numeric-owner -C "$dist" -czf "$dist/$name.tar.gz" "$name"
rm -rf "$folder"

(cd "$dist" && sha256sum ./*.deb ./*.tar.gz >SHA256SUMS && cat SHA256SUMS)
