#!/bin/sh
# Trains on the last days of a topic and writes a bundle, unless the new model is worse on the
# newest held-out events than the one in service. It never touches what is served.
#
#   retrain.sh CONFIG FOLDER [SECTION.NAME=VALUE ...]
#
# CONFIG   settings of keyfold-train with [kafka]; paths in it are relative to FOLDER
# FOLDER   holds runs/, bundles/ and `served`, a link to the bundle in service (in bundles/). The run
#          that bundle was made of has to stay in runs/: the new model is judged against it.
# KEYFOLD_RETRAIN_DAYS   how far back it reads (30); what the topic retains is the most
#
# Exit status: 0 there is a new bundle, which the link `candidate` names; 1 there is none, as the
# last line says (a worse model, too little data, no broker); 2 CONFIG or FOLDER is not as above.
set -eu

fail() {
    echo "retrain: $*" >&2
    exit 2
}

[ $# -ge 2 ] || fail "expected CONFIG FOLDER [SECTION.NAME=VALUE ...]"
[ -f "$1" ] || fail "$1: expected the settings of keyfold-train, got no such file"
config=$(cd -- "$(dirname -- "$1")" && pwd -P)/$(basename -- "$1")
folder=$2
shift 2
cd -- "$folder" || fail "$folder: expected a folder"
[ -f served/manifest.json ] || fail "$folder/served: expected a link to the bundle in service:" \
    "ln -s bundles/ID $folder/served"
served=$(cd -P -- served && pwd -P)

settings=
for setting in "$@"; do
    case $setting in
    *[!A-Za-z0-9_.,=:/+-]*) fail "expected SECTION.NAME=VALUE without spaces, got '$setting'" ;;
    esac
    settings="$settings --set $setting"
done

# shellcheck disable=SC2086  # each is one word, as made sure above
keyfold-train "$config" --out runs --against "$served" \
    --set "kafka.start=-${KEYFOLD_RETRAIN_DAYS:-30}d" $settings
said=$(keyfold-export runs/latest --out bundles --unless-worse)
printf '%s\n' "$said" | sed '/^next: /d'
new=$(printf '%s\n' "$said" | sed -n 's/^bundle: //p')
rm -f candidate
ln -s "$new" candidate

cat <<END
retrain: $new is no worse than $(basename "$served"). To put it into service:
  new.toml = worker.toml with worker.bundle = "$(pwd)/$new",
      another kafka.group, and worker.emit_from = "handover"
  keyfold-worker check new.toml && keyfold-worker new.toml    beside the old one
  keyfold-state list new.toml                    until it stands at the log's end
  keyfold-state handover worker.toml new.toml
  cd $(pwd) && rm served && ln -s $new served    what the next one is judged by
END
