# Fetches one file from another host with what every host has: bash and coreutils. Run as root by bash -c, see supply.rs.
# Arguments: address, port, size, sha256, where to. Stdin: the token. It comes compressed where there is gzip.
# With `-` as address stdin is a gzip of the file itself.
# Ends with 127 where something is missing for it or it cannot be written, so that nobody else is to blame;
# else with another code.
set -eu
address=$1 port=$2 size=$3 digest=$4 file=$5
part=$file.part packed=$file.gz
for tool in chmod head mkdir mv rm sha256sum tee timeout; do
    command -v "$tool" >/dev/null || { echo "$tool is not there" >&2; exit 127; }
done
gzip=
if command -v gzip >/dev/null; then
    gzip=' gzip'
elif [ "$address" = - ]; then
    echo "gzip is not there" >&2
    exit 127
fi
if [ "$address" != - ]; then
    IFS= read -r token
    # Only its silence tells a filtered port, and a shell cannot limit its own patience.
    if ! timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$address" "$port"; then
        echo "$address:$port cannot be connected to; is a firewall between the hosts?" >&2
        exit 1
    fi
fi
trap 'rm -f -- "$part" "$packed.part"' EXIT
mkdir -p -- "${file%/*}" && rm -f -- "$part" "$packed" "$packed.part" && : >"$part" || exit 127
if [ "$address" = - ]; then
    exec 3<&0
else
    exec 3<>"/dev/tcp/$address/$port"
    printf '%s%s\n' "$token" "$gzip" >&3
fi
if [ "$gzip" ]; then
    # Kept as it came: whoever gets it from this host next is spared the compressing. What it compresses to is hardly ever larger.
    head -c "$((size + 65536))" <&3 | tee -- "$packed.part" | gzip -dc | head -c "$size" >"$part" \
        && kept=${PIPESTATUS[1]} || exit 127
    # Where there was place for the file and not for both.
    [ "$kept" = 0 ] || rm -f -- "$packed.part"
else
    head -c "$size" <&3 >"$part" || exit 127
fi
exec 3>&-
# Before anybody can run it.
if ! printf '%s  %s\n' "$digest" "$part" | sha256sum -c >/dev/null 2>&1; then
    echo "what came is not what was to come" >&2
    exit 1
fi
chmod 755 "$part"
[ ! -e "$packed.part" ] || mv -f -- "$packed.part" "$packed"
mv -f -- "$part" "$file"
