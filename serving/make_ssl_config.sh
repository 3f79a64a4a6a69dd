#!/bin/sh
# Written by `tfmetarec export --serving-config`. Makes a private key, a certificate signed by itself, tls/ssl.config.
#
#   ./make_ssl_config.sh [HOST ...]      hosts and addresses that clients connect to; localhost and 127.0.0.1 if none
#
# For a certificate of a real authority put its files at tls/server.key and tls/server.crt and run this again: what is
# there is used.
set -eu
umask 077
cd "$(dirname "$0")"
mkdir -p tls
echo '*' > tls/.gitignore

if [ ! -e tls/server.key ] && [ ! -e tls/server.crt ]; then
  [ "$#" -gt 0 ] || set -- localhost 127.0.0.1
  names=
  for host in "$@"; do
    case "$host" in
      *[!0-9.]*) kind=DNS ;;
      *) kind=IP ;;
    esac
    names="$names${names:+,}$kind:$host"
  done
  openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj "/CN=$1" -addext "subjectAltName=$names" \
    -keyout tls/server.key -out tls/server.crt
fi

pem() { # A file as one line of text, line ends written as \n.
  awk '{ printf "%s\\n", $0 }' "$1"
}
{
  printf 'server_key: "%s"\n' "$(pem tls/server.key)"
  printf 'server_cert: "%s"\n' "$(pem tls/server.crt)"
} > tls/ssl.config
echo "Wrote tls/ssl.config. Clients need tls/server.crt, and nobody else tls/server.key."
